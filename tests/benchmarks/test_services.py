import pytest

from benchmarks import services


@pytest.mark.slow
def test_a_rate_for_each_way_of_asking(capsys: pytest.CaptureFixture[str]) -> None:
    services.main(["--latency", "0.01", "--seconds", "0.02"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 12
    assert all(int(line.split()[3]) > 0 for line in lines[2:])
