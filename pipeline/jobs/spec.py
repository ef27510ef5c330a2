"""`JobSpec`: a whole run, written down and checked before anything is opened.

>>> job = parse_job({"source": {"path": "sst.zarr"}, "model": {"n_components": 4}, "output": {"model": "eof.zarr"}})
>>> job.model.estimator, job.model.n_components, job.source.indexers()
('PCA', 4, None)
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.jobs.secrets import WAY_OUT, secret_in

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "ClusterSpec",
    "JobSpec",
    "ModelSpec",
    "OutputSpec",
    "Range",
    "SourceSpec",
    "TLSSpec",
    "load_job",
    "load_spec",
    "parse_job",
    "scalar",
]


def scalar(text: str) -> int | float | str:
    """What a word stands for: an int, a float, or itself.

    >>> scalar("10"), scalar("-5.0"), scalar("auto")
    (10, -5.0, 'auto')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _ends(value: Any) -> Any:
    """START:STOP as a mapping; labels may hold colons of their own, as many in START as in STOP."""
    if not isinstance(value, str):
        return value
    parts = value.split(":")
    if len(parts) % 2:
        raise ValueError("no colon in the middle")
    middle = len(parts) // 2
    words = ":".join(parts[:middle]).strip(), ":".join(parts[middle:]).strip()
    start, stop = (scalar(w) if w else None for w in words)
    return {"start": start, "stop": stop}


def _bytes(value: Any) -> Any:
    from dask.utils import parse_bytes

    if isinstance(value, bool) or parse_bytes(value) <= 0:
        raise ValueError("not a positive size")
    return value


class _Spec(BaseModel):
    """No key is ignored and no value is guessed at; a field's description is what an error says was expected."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_Bound = int | float | str | None
_Name = Annotated[str, Field(min_length=1)]
_Names = _Name | Annotated[list[_Name], Field(min_length=1)]
_Bytes = Annotated[int | str, BeforeValidator(_bytes)]


class Range(_Spec):
    """A stretch of one dim: ints are positions, stop excluded; floats and text are labels of its coordinate."""

    start: _Bound = None
    stop: _Bound = None

    def to_slice(self) -> slice:
        """The stretch as `open_matrix` takes it."""
        return slice(self.start, self.stop)


_Selection = Annotated[Range, BeforeValidator(_ends)] | list[Annotated[int, Field(strict=True)]]


class SourceSpec(_Spec):
    """Where the matrix is and which part of it is meant; the arguments of `open_matrix`."""

    path: _Name = Field(description="the path or URL of a Zarr array or group")
    variable: _Names | None = Field(default=None, description="a name or a list of names")
    sample_dims: _Names | None = Field(default=None, description="a dim or a list of dims")
    weights: Literal["coslat"] | None = Field(default=None, description="coslat")
    select: dict[str, _Selection] | None = Field(
        default=None, description="DIM: 'START:STOP', DIM: {start: START, stop: STOP} or DIM: a list of positions"
    )

    def indexers(self) -> dict[str, slice | list[int]] | None:
        """`select` as `open_matrix` takes it."""
        if self.select is None:
            return None
        return {dim: s.to_slice() if isinstance(s, Range) else s for dim, s in self.select.items()}


class ModelSpec(_Spec):
    """Which estimator, with which parameters."""

    estimator: Literal["PCA", "TruncatedSVD", "RobustPCA"] = Field(
        default="PCA", description="PCA, TruncatedSVD or RobustPCA"
    )
    n_components: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] | None = Field(
        default=None, description="an int of at least 1, a fraction of the variance between 0 and 1, or 'auto'"
    )
    solver: _Name = Field(default="auto", description="the name of a solver, or 'auto'")
    tol: float | None = Field(default=None, gt=0, lt=1, strict=False, description="a number between 0 and 1")
    center: bool | None = Field(default=None, description="true or false; a TruncatedSVD never centres")
    scale: Literal["std", "genotype", "mad"] | None = Field(default=None, description="std, genotype or mad")
    missing: Literal["error", "mean", "em"] = Field(default="error", description="error, mean or em")
    memory_limit: _Bytes | None = Field(default=None, description="bytes a worker, or a size such as 2GB")
    checkpoint: _Name | None = Field(default=None, description="the path or URL of a store")
    random_state: int = Field(default=0, ge=0, description="an int of at least 0")
    start: _Name | None = Field(default=None, description="the path or URL of a model to begin with")
    method: _Name | None = Field(default=None, description="the name of a robust method, such as filter")
    eps: float | None = Field(default=None, ge=0, lt=0.5, strict=False, description="a share from 0 and below 0.5")

    @model_validator(mode="after")
    def _robust_by_robust_pca_only(self) -> ModelSpec:
        robust = self.estimator == "RobustPCA"
        if not robust and (self.method is not None or self.eps is not None):
            raise ValueError("method and eps are for a robust estimator: take estimator: RobustPCA, or leave them out")
        if robust and self.tol is not None:
            raise ValueError("a RobustPCA stops by its own certificate: leave out tol")
        return self

    @model_validator(mode="after")
    def _centred_by_pca_only(self) -> ModelSpec:
        if self.estimator == "TruncatedSVD" and self.center:
            raise ValueError("a TruncatedSVD never centres: leave out center, or take estimator: PCA")
        return self


class OutputSpec(_Spec):
    """What is written where."""

    model: _Name = Field(description="the path or URL of the store to write")
    scores: _Name | None = Field(default=None, description="the path or URL of the store to write")
    report: _Name | None = Field(default=None, description="the path of the HTML file to write")
    store: Literal["zarr", "icechunk"] = Field(default="zarr", description="zarr or icechunk")
    jobs: _Name | None = Field(default=None, description="the path or URL of the store of what submitted jobs tell")
    overwrite: bool = Field(default=False, description="true or false")


class TLSSpec(_Spec):
    """Certificates for a Dask cluster over TLS: places of files, never what is in them."""

    ca: _Name = Field(description="the path of the authority's certificate (PEM)")
    cert: _Name = Field(description="the path of the client's certificate (PEM)")
    key: _Name = Field(description="the path of the client's key (PEM)")

    def security(self) -> Any:
        """As `distributed` takes them; raises InputError when a file cannot be used."""
        from distributed import Security

        try:
            security = Security(
                tls_ca_file=self.ca, tls_client_cert=self.cert, tls_client_key=self.key, require_encryption=True
            )
            security.get_connection_args("client")  # reads the files
        except OSError as error:
            lost = next((p for p in (self.ca, self.cert, self.key) if not Path(p).is_file()), None)
            fault = "they do not fit together, or are no PEM" if lost is None else f"{lost} does not exist"
            raise InputError(f"the certificates tls.ca, tls.cert and tls.key cannot be used: {fault}") from error
        return security


class ClusterSpec(_Spec):
    """Where the work runs: a kind of cluster, of which each has a file of its own in `pipeline.jobs.clusters`."""

    kind: str

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: Any, validate: Callable[[Any], Any]) -> Any:
        if cls is not ClusterSpec or isinstance(value, ClusterSpec):
            return validate(value)
        from pipeline.jobs.clusters import kind_of  # its kinds are made of what is here

        if isinstance(value, str):
            return load_spec(ClusterSpec, cluster_file(value))
        kind, settings = kind_of(value)
        try:
            return kind.model_validate(settings)
        except ValidationError as error:
            raise _Inside(kind, error) from error

    def client(self, stays: bool = False) -> AbstractContextManager[Client]:
        """A client of the cluster, started where need be, and gone after it unless it `stays`."""
        raise NotImplementedError

    def again(self, client: Client) -> ClusterSpec:
        """What finds the same cluster again that a client works with."""
        return self

    def shown(self) -> str:
        """What is asked of the system that starts it, as that system reads it."""
        raise NotImplementedError


class JobSpec(_Spec):
    """A whole run: source, model, outputs, cluster."""

    name: str | None = Field(default=None, description="text")
    source: SourceSpec = Field(description="a section of keys such as path")
    model: ModelSpec = Field(default=ModelSpec(), description="a section of keys such as n_components")
    output: OutputSpec = Field(description="a section of keys such as model")
    cluster: SerializeAsAny[ClusterSpec] | None = Field(
        default=None, description="a section of keys such as workers, or a file such as conf/clusters/local.yaml"
    )

    def with_(self, cluster: ClusterSpec | None, *, overwrite: bool = False) -> JobSpec:
        """The same job on another cluster, and where asked for in the place of what is there."""
        output = self.output.model_copy(update={"overwrite": overwrite or self.output.overwrite})
        return self.model_copy(update={"cluster": cluster, "output": output})


def cluster_file(name: str) -> str:
    """The file that is meant: one by its path, or one of conf/clusters by its name."""
    folder = Path("conf/clusters")
    for path in (Path(name), folder / name, folder / f"{name}.yaml"):
        if path.is_file():
            return str(path)
    there = sorted(p.stem for p in folder.glob("*.yaml"))
    known = f"in {folder} are {', '.join(there)}" if there else f"and there is no {folder} in the current directory"
    raise InputError(f"there is no cluster file {name}: give the path of a YAML file; {known}")


S = TypeVar("S", bound=_Spec)


def parse_job(settings: Mapping[str, Any]) -> JobSpec:
    """The job that nested settings describe; raises InputError that names the first setting that is wrong."""
    return parse(JobSpec, settings)


def parse(kind: type[S], settings: Mapping[str, Any]) -> S:
    """A section of a job from its settings; raises InputError that names the first setting that is wrong."""
    secret = secret_in(settings)
    if secret is not None:
        raise InputError(f"{'.'.join(map(str, secret))} {WAY_OUT}")
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        raise InputError(_explain(kind, settings, error)[1]) from None


def load_job(path: str | PathLike[str]) -> JobSpec:
    """The job that a YAML file describes; raises as `load_spec`."""
    return load_spec(JobSpec, path)


def load_spec(kind: type[S], path: str | PathLike[str]) -> S:
    """What a YAML file describes.

    Parameters
    ----------
    kind : type
        Of the settings.
    path : path
        Of the file; relative paths inside it start at the current directory.

    Raises
    ------
    InputError
        When the file is missing, empty or no YAML, or a key or value is wrong: names file, line and what was expected.
    """
    name = fspath(path)
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        settings = None if root is None else loader.construct_document(root)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{name} is no text file: a job is written in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name} line {mark.line + 1}" if mark else name
        raise InputError(f"{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(settings, dict):
        what = "is empty" if settings is None else "holds no keys"
        needed = [key for key, field in kind.model_fields.items() if field.is_required()]
        raise InputError(f"{name} {what}: it needs the sections {', '.join(needed[:-1])} and {needed[-1]}")
    secret = secret_in(settings)
    if secret is not None:
        raise InputError(f"{name} line {_line(root, secret)}: {'.'.join(map(str, secret))} {WAY_OUT}")
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        place, sentence = _explain(kind, settings, error)
        raise InputError(f"{name} line {_line(root, place)}: {sentence}") from None


class _Loader(yaml.SafeLoader):
    """YAML as people read it: 10:50 and 2000-01-01 are text and 1e-6 is a number, which YAML 1.1 sees otherwise."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT, _DATE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


class _Inside(ValueError):
    """What is wrong in a section whose kind only its content told."""

    def __init__(self, kind: type[BaseModel], error: ValidationError) -> None:
        super().__init__(kind, error)
        self.kind, self.error = kind, error


def _explain(
    kind: type[BaseModel], settings: Any, error: ValidationError, above: tuple[Any, ...] = ()
) -> tuple[tuple[Any, ...], str]:
    """Where the first problem lies and the sentence that tells it; a wrong key before what it leaves missing."""
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda p: p["type"] not in ("extra_forbidden", "invalid_key"))
    place, value = _given(settings, problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, _Inside):
        return _explain(cause.kind, value, cause.error, (*above, *place))
    path = problem["loc"] if problem["type"] == "missing" else place
    section, field = kind, None
    inside: type[BaseModel] | None = kind
    named = False  # a mapping of names to sections
    for key in path:
        if inside is None:
            break
        if named:
            named = False
            continue
        section, field = inside, inside.model_fields.get(str(key))
        if field is None:
            return (*above, *place), _unknown(str(key), (*above, *path[:-1]), section)
        inside, named = _section(field.annotation), get_origin(field.annotation) is dict
    dotted, place = ".".join(map(str, (*above, *path))), (*above, *place)
    expected = field.description if field else "sections of keys"
    if problem["type"] == "missing":
        return place, f"{dotted} is missing; expected {expected}"
    if problem["type"] == "value_error" and inside is not None:
        return place, str(cause)
    return place, f"{dotted} is {reprlib.repr(value)}; expected {expected}"


def _given(settings: Any, loc: Iterable[Any]) -> tuple[tuple[Any, ...], Any]:
    """The part of a location that the settings have, and what is there; names of types inside it are left out."""
    place: list[Any] = []
    for part in loc:
        if not isinstance(settings, Mapping):
            break
        key = next((k for k in settings if str(k) == str(part)), None)
        if key is None:
            break
        settings = settings[key]
        place.append(key)
    return tuple(place), settings


def _section(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *get_args(annotation)]
    kinds += [inner for kind in kinds for inner in get_args(kind)]  # of what is annotated inside a union
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _unknown(key: str, above: Iterable[Any], section: type[BaseModel]) -> str:
    known = list(section.model_fields)
    near = difflib.get_close_matches(key, known, n=1)
    where = ".".join(map(str, above))
    way_out = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {key!r}{f' in {where}' if where else ''}; {way_out}"


def _line(node: yaml.Node | None, place: Iterable[Any]) -> int:
    """The line, from 1, of the last key along a place."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in place:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(k, v) for k, v in pairs if k.value == str(part)]
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line
