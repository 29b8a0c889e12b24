"""What the floors and ceilings are called in results, where tables, pages and pictures find them by these names."""

PIXELS = "raw pixels, nearest class mean"
RANDOM = "random learner, adapted"
RANDOM_READ = "random learner, read the same way"
ONE_TEACHER = "one frozen teacher (mean)"
ITS_TEACHER = "its teacher (ceiling)"  # of a student
ANSWERS_ALONE = ", answers alone"  # ends the names of teachers that are not looked into
# Methods that see real images: what they are called beside others, and what the other must share
CEILINGS = {
    "real": ("real data (ceiling)", ("backbone", "metalearner", "batch_statistics", "readout", "test_inner_steps")),
    "real_classifier": ("one classifier of all real classes (ceiling)", ("backbone",)),
}
WORTH = {  # floors that need no training, and what a score below one means
    PIXELS: "what it learnt tells classes apart worse than the pixels themselves",
    RANDOM_READ: "what it learnt tells them apart worse than numbers drawn at random, read the same way",
    ONE_TEACHER: "a single teacher as it is, without any training, does better",
}


def all_teachers(count: int) -> str:
    """The name of the floor of `count` frozen teachers together."""
    return f"all {count} frozen teachers"


def is_all_teachers(label: str) -> bool:
    return label.startswith("all ")


def is_random(label: str) -> bool:
    return label.startswith((RANDOM, RANDOM_READ))


def is_ceiling(label: str) -> bool:
    return "(ceiling)" in label
