"""Recipes: TOML files that describe a method by its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ragalign._settings import from_table, read_toml
from ragalign.constants import as_constants, make_constants
from ragalign.errors import ConfigError
from ragalign.generation.presets import decoding_preset
from ragalign.packing import Packing
from ragalign.planning import PlannerSettings
from ragalign.pool import Pool
from ragalign.reuse.settings import ReuseSettings
from ragalign.runs import fingerprint
from ragalign.templates import Constant, PromptFile, Template
from ragalign.types import Decoding, Demonstration

_PACKAGED = "package:"


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """The index that `ragalign index --recipe` builds. Paths are relative to the recipe's folder.

    Attributes:
        pool: files of demonstrations, or names of Hugging Face datasets.
        shape: shape of the rows, such as "alpaca" or "messages"; "auto" recognises the shape of each row.
        fields: names of the rows' fields, such as ``{ instruction = "question" }``.
        metadata: fields that are never part of a demonstration.
        unwrap: extract instructions from the Alpaca prompt template.
        on_error: "strict" stops at the first bad row; "skip" skips bad rows and lists them.
        near_duplicates: remove instructions at least this similar to an earlier one (Jaccard, such as 0.8).
        encoder: a sentence-transformers model; MiniLM by default.
        normalize: scale vectors to length 1.
        query_prompt: text to prepend to queries, if the encoder needs one.
        document_prompt: text to prepend to indexed texts.
        precision: precision of the encoder's weights; "auto" is bfloat16 on processors with instructions for it.
        text: encode only the instruction, or both instruction and response.
        kind: "auto", "flat", "hnsw", "ivf" or a FAISS factory string.
        metric: how vectors are compared.
    """

    pool: tuple[str, ...] = ()
    shape: str = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)
    metadata: tuple[str, ...] = ()
    unwrap: bool = False
    on_error: Literal["strict", "skip"] = "strict"
    near_duplicates: float | None = None
    encoder: str = ""
    normalize: bool = True
    query_prompt: str | None = None
    document_prompt: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    text: Literal["instruction", "both"] = "instruction"
    kind: str = "auto"
    metric: Literal["cosine", "ip", "l2"] = "cosine"


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """The form of the prompt.

    Attributes:
        form: a built-in template's name or a TOML file; "auto" takes it from `prompt_file`.
        prompt_file: a published prompt file, whose preamble and demonstrations are used verbatim.
        system_file: a text file that becomes the preamble, under the form's heading.
        escape: see `Template`.
    """

    form: str = "auto"
    prompt_file: str = ""
    system_file: str = ""
    escape: Literal["neutralise", "none"] = "neutralise"


@dataclass(frozen=True, slots=True)
class ConstantSettings:
    """Demonstrations that every prompt begins with.

    Attributes:
        kind: "file" uses the rows of `file` in order; the other kinds draw from `pool` (see
            `ragalign.constants.make_constants`).
        file: a pool file; for other kinds, the instructions (for "unsupervised", the answered demonstrations) to use
            instead of drawing them.
        pool: the pool file or dataset to draw from.
        n: number of demonstrations to draw.
        seed: random seed.
        by: for "diverse", the field to balance.
        answers: for "random_answer_ood", the pool to draw answers from.
    """

    kind: str = "file"
    file: str = ""
    pool: str = ""
    n: int = 3
    seed: int = 0
    by: str = "source"
    answers: str = ""


@dataclass(frozen=True, slots=True)
class RetrieverSettings:
    """How demonstrations are retrieved for each query.

    Attributes:
        name: a retriever's name, or "none" for no retrieval.
        candidates: hits to retrieve per query at first, and the largest number of demonstrations in a prompt; None
            means the packer's `max_demonstrations`.
        exclude_same_text: exclude demonstrations whose instruction is the query.
        exclude_near: exclude demonstrations with at least this cosine similarity to the query.
        where: metadata values that demonstrations must match.
        options: arguments of the retriever's class.

    Raises:
        ConfigError: `candidates` is less than 1.
    """

    name: str = "dense"
    candidates: int | None = None
    exclude_same_text: bool = True
    exclude_near: float | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.candidates is not None and self.candidates < 1:
            raise ConfigError(f"candidates must be at least 1, not {self.candidates}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method: everything from index to decoding.

    Attributes:
        name: the recipe's name.
        description: a one-line description.
        folder: the folder that relative paths start from.
        index, template, constants, retriever, packing, planner, reuse, decoding: the parts.
    """

    name: str
    description: str = ""
    folder: Path = Path()
    index: IndexSettings = field(default_factory=IndexSettings)
    template: TemplateSettings = field(default_factory=TemplateSettings)
    constants: ConstantSettings = field(default_factory=ConstantSettings)
    retriever: RetrieverSettings = field(default_factory=RetrieverSettings)
    packing: Packing = field(default_factory=Packing)
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    reuse: ReuseSettings = field(default_factory=ReuseSettings)
    decoding: Decoding = field(default_factory=Decoding)

    @classmethod
    def load(cls, name_or_file: str | Path) -> Recipe:
        """Load a packaged recipe by name, or a TOML file.

        Raises:
            ConfigError: no such recipe, or it has an unknown key or an invalid value.
        """
        path = Path(name_or_file)
        if path.suffix != ".toml":
            names = packaged_recipes()
            if str(name_or_file) not in names:
                raise ConfigError(f"no recipe {str(name_or_file)!r}: use one of {', '.join(names)}, or a .toml file")
            path = data_folder() / "recipes" / f"{name_or_file}.toml"
        table = read_toml(path)
        where = f"recipe {path}"
        if "preset" in table.get("decoding", {}):
            preset, own = table["decoding"]["preset"], {k: v for k, v in table["decoding"].items() if k != "preset"}
            table["decoding"] = asdict(decoding_preset(preset)) | own
        recipe = from_table(cls, {"name": path.stem, **table, "folder": path.parent}, where)
        if recipe.template.prompt_file and "constants" in table:
            raise ConfigError(f"{where}: a prompt_file has its own demonstrations; remove [constants]")
        if recipe.template.prompt_file and recipe.template.system_file:
            raise ConfigError(f"{where}: a prompt_file has its own preamble; remove system_file")
        if recipe.reuse.enabled and recipe.planner.strategy != "none":
            raise ConfigError(
                f"{where}: [reuse] and the planner's strategy {recipe.planner.strategy!r} cannot be "
                "combined; remove one of them"
            )
        return recipe

    def path(self, name: str) -> Path:
        """Resolve a file name: packaged (``package:NAME``), absolute, or relative to the recipe's folder."""
        if name.startswith(_PACKAGED):
            return data_folder() / name.removeprefix(_PACKAGED)
        return self.folder / name

    def source(self, name: str) -> str:
        """Resolve a source of demonstrations: a file as in `path`, or else the name of a dataset."""
        path = self.path(name)
        return str(path) if path.exists() or name.startswith(_PACKAGED) else name

    def make_template(self) -> tuple[Template, tuple[Constant, ...]]:
        """Build the template with its preamble, and the constant demonstrations as rendered in the prompt.

        Raises:
            ConfigError, DataError: a file that the recipe names is missing or invalid.
        """
        settings = self.template
        if settings.prompt_file:
            file = PromptFile.load(self.path(settings.prompt_file), settings.form)
            return replace(file.prompt_template(), escape=settings.escape), file.prompt_constants()
        form = "plain" if settings.form == "auto" else settings.form
        template = Template.load(self.path(form) if form.endswith(".toml") else form)
        template = replace(template, escape=settings.escape)
        if settings.system_file:
            template = template.with_system(_read_text(self.path(settings.system_file)))
        return template, as_constants(template, self._constants())

    def content(self) -> dict[str, Any]:
        """Everything that determines prompts and answers, as JSON values: no names, and texts as hashes.

        Raises:
            ConfigError, DataError: as `make_template`.
        """
        template, constants = self.make_template()
        retrieves = self.retriever.name != "none"
        return {
            "template": {**asdict(template), "preamble": fingerprint(template.preamble)},
            "constants": [fingerprint([constant.demonstration.id, constant.text]) for constant in constants],
            "retriever": asdict(self.retriever) if retrieves else {"name": "none"},
            "packing": asdict(self.packing),
            "planner": asdict(self.planner),
            "decoding": asdict(self.decoding),
            **({"reuse": {"real": self.reuse.real}} if self.reuse.enabled else {}),
        }

    def _constants(self) -> tuple[Demonstration, ...]:
        settings = self.constants
        given = tuple(Pool.load(self.source(settings.file))) if settings.file else ()
        if settings.kind == "file":
            return given
        if not settings.pool:
            raise ConfigError(f"recipe {self.name!r}: [constants] of kind {settings.kind!r} need a pool to draw from")
        options: dict[str, object] = {}
        if settings.kind == "diverse":
            options["by"] = settings.by
        elif given:
            options["answered" if settings.kind == "unsupervised" else "base"] = given
        if settings.answers:
            options["answers"] = Pool.load(self.source(settings.answers))
        pool = Pool.load(self.source(settings.pool))
        return make_constants(settings.kind, pool, settings.n, settings.seed, **options)


def packaged_recipes() -> list[str]:
    """The names of the packaged recipes."""
    return sorted(path.stem for path in (data_folder() / "recipes").glob("*.toml"))


def data_folder() -> Path:
    """The folder of the package's data files: the starter pool, recipes, the system prompt."""
    return Path(str(files("ragalign") / "data"))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
