"""What a server of the Open Inference Protocol has, and how services are asked."""

from dataclasses import dataclass, field

from methods.services.answer_store import AnswerStore
from methods.services.black_box import ListedService
from methods.services.client import IN_FLIGHT, Client, Credential
from methods.services.form import ModelForm, as_list, parameters_of
from methods.services.remote import RemoteModel
from utils.errors import UserError
from utils.names import different_classes


@dataclass(frozen=True)
class Asking:
    """How services are asked: requests at once, and where answers are kept (None: nowhere)."""

    in_flight: int = IN_FLIGHT
    store: AnswerStore | None = None
    _clients: dict[tuple, Client] = field(default_factory=dict, repr=False, compare=False)

    def client(self, url: str, credential: Credential = Credential()) -> Client:  # noqa: B008 (it is never changed)
        """The one client of a server: its models share the requests at once."""
        return self._clients.setdefault((url, credential), Client(url, credential, self.in_flight))


def models_of(url: str, asking: Asking) -> list[ListedService]:
    """The models of a server that says itself what their classes are called, as this project's does.

    Raises `UserError` for another: its models are listed in a manifest.
    """
    check_url(url)
    client = asking.client(url)
    if client.look("GET", "/v2") is None:
        raise UserError(f"{url} is no server of the Open Inference Protocol: it has no /v2")
    names = client.model_names()
    if names is None:
        raise UserError(f"{url} does not list its models; list them yourself in a teachers.csv (docs/services.md)")
    found = []
    for name in names:
        model = RemoteModel(client, ModelForm(name), 0, 0, asking.store)
        said = parameters_of(model.metadata)
        try:
            classes, size = different_classes(map(str, as_list(said["class_names"])), url), int(said["image_size"])
            if not classes or size < 1:
                raise ValueError("no classes, or no size")
        except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
            raise UserError(
                f"{url} has {', '.join(names)}, and does not say what their classes are called: list them in a teachers.csv "
                "(docs/services.md)"
            ) from error
        model.num_classes, model.image_size, model.class_names = len(classes), size, classes
        found.append(ListedService(model, model.place, classes, size, str(said.get("dataset") or "service")))
    return found


def check_url(url: str) -> None:
    """Raise `UserError` for a URL with more in it than a server's place."""
    if any(sign in url for sign in "@?#"):
        raise UserError("a server's URL must hold no user, password, query or fragment: a token goes into the environment")
