"""Package names: their normal form, and the words in a text that may be one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions, packages_distributions
from types import MappingProxyType

from durable_batches.extraction.requirement import parse_requirement
from durable_batches.options import check_iterable, check_labels, check_text

__all__ = ["Vocabulary", "canonical_package_name"]


def canonical_package_name(name: str) -> str:
    """Normalise a package's name (PEP 503): `Typing.Extensions` and `typing_extensions` are the same."""
    check_text("name", name)
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


class Vocabulary:
    """The packages that can be recognised in prose.

    Args:
        packages: Names as their authors write them.
        modules: Names to import, each with the package that brings it (`yaml` with `PyYAML`).
    """

    def __init__(self, packages: Iterable[str] = (), modules: Mapping[str, str] = MappingProxyType({})) -> None:
        check_iterable("packages", packages)
        check_labels("modules", modules)
        names: dict[str, str] = {}
        for name in packages:
            names.setdefault(canonical_package_name(name), name)
        # Backports are named like the module of the standard library that they replace: the word means the
        # module.
        self._names = {key: name for key, name in names.items() if key not in sys.stdlib_module_names}
        self._modules = {
            module: package for module, package in modules.items() if module not in sys.stdlib_module_names
        }

    @classmethod
    def installed(cls) -> Vocabulary:
        """Make a vocabulary of the installed packages and those that they require, installed or not."""
        packages: list[str] = []
        required: list[str] = []
        for distribution in distributions():
            name = distribution.metadata["Name"]
            if name:
                packages.append(name)
                requirements = map(parse_requirement, distribution.requires or ())
                required += [requirement.name for requirement in requirements if requirement]
        modules = {
            module: sorted(found)[0]
            for module, found in packages_distributions().items()
            if len(set(found)) == 1 and not module.startswith("_")
        }
        return cls([*packages, *required], modules)

    def __contains__(self, name: str) -> bool:
        return canonical_package_name(name) in self._names

    def __len__(self) -> int:
        return len(self._names)

    def spelling(self, name: str) -> str:
        """Return the author's spelling of a name, if known."""
        return self._names.get(canonical_package_name(name), name)

    def package_of_module(self, module: str) -> str | None:
        """Return the package that contains a module, by the first part of the module's name."""
        top = module.split(".")[0]
        return self._modules.get(top) or (self._names.get(canonical_package_name(top)) if top else None)


def is_distinctive(name: str) -> bool:
    """Return whether a name is unmistakably a package: neither short nor an ordinary word."""
    key = canonical_package_name(name)
    return len(key) > 3 and key not in _AMBIGUOUS


_AMBIGUOUS = frozenset(
    """
    accelerate acme addict affine agate alabaster alembic altair android anki apprise arch arrow asana
    astral autograd automat av avro awesome babel backoff bandit banks beanie behave billiard black bleach
    blessed blinker bokeh bottle bottleneck box braces branca brotli browser build buildkit bytecode
    cachebox cachecontrol cairo cantools capstone catalogue celery cement chalice channels chess chevron
    choreographer click cmake cobble cohere color colored colorful colour comm commonmark composio conan
    confection config connexion constantly construct constructs context contexts core coverage cron
    cryptography cycler cyclopts daphne dash data dataset datasets decorator decorators deprecated
    deprecation diagrams diff dill distributed docker docs dominate dotenv dropbox editables editor email
    emoji entrypoints environs envs evaluate event events example executing exceptions fabric face faker
    fasteners figures filelock fire flake flaky flask flit flower flow folium forms formulas freeze frida
    furo furl fuse future futures gateway genome git github gitlab glom google gradio grandalf graph
    graphene graphviz green groovy growthbook grpc hatch hatchling helper history hive holidays html
    humanize hyperlink hypothesis icecream identify image images import incremental inflect inflection
    inject injector inspect installer instructor interface invoke isort java javascript jenkins jira joy
    json jupyter kaleido kerberos keyring knack kubernetes lark leather library lightning limits lit live
    locate locket lockfile locust log logbook logger logging logo loguru lookup lupa luigi magic mako mando
    mangum manifest mariadb markdown marko markup marshmallow match matrix menu meson metadata migrate mixer
    mock modal model modin module molecule mongo monotonic monty moto motor munch mysql namex narwhals
    network ninja node nose notebook notify nox numba objects observable optimum options oracle orange
    outcome outlines overrides packaging page paginate panda panel parallel param parameterized parse parser
    particle paste pastel patch path paths patsy peewee pendulum persist pex pika pillow pint pip pipe
    pipeline plan plaster plugin plugins plumbum ply poetry polars pool pooch postgres premailer pretty
    primer printer prison process profile profiler progress prometheus promise prompt prophet proxy
    publication pulp pump pure purse pusher python quart query queue quick radar radon random rapid raven
    ray react readme realtime record redis referencing regex regress repeat replicate repository request
    requests resample resource responses rest result results retry retrying rich rollbar rope router ruff
    rule rules run runner runs safety sanic scandir schedule scheduler schema scope scrapy screen script
    scripts seaborn search secure security sentry server service session sessions settings setup shapely
    sheet shell shelf shortcuts signal signals simple site six slicer slim slots snap snowflake snowball
    socket source spandrel spark speed sphinx spider split splunk spring sql stack stamina stash statistics
    status stream stripe structure style submit supervisor surprise svn swift system table tables tabulate
    tag tags task tasks tell template templates tenacity terminal test testing tests textual theme thread
    threads thrift tile time timeout tiny tink token tokenizers toml tool toolkit tools torch tornado tower
    trace trampoline transaction transform transformers transitions translate tree trio triton trove tuple
    turbo twine twisted type typing unify unit units update url user utils validate validators value vault
    verifiers version versions vine vision vulture waitress wand watchdog watch weasel web websocket
    websockets wheel wheels whenever whistle whitenoise wing wire workflow wrap wrapper xattr yaml yarn zeep
    zest zip zoo
    """.split()
)
"""Package names that are ordinary words or other names: without context they are not taken for packages."""
