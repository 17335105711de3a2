"""The steps of a resolution: each one a function of the pages of earlier ones, which lie in a folder.

The database is scratch: a process that has none yet makes it from the pages. So any process goes on with what another
one has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from durable_batches import NonRetryableError
from durable_batches.extraction.resolution.blocking import BlockingPlan, make_candidates
from durable_batches.extraction.resolution.database import (
    exists,
    load,
    number,
    open_database,
    quoted,
    record_page,
    rows,
    write_page,
)
from durable_batches.extraction.resolution.grouping import Clusterer
from durable_batches.extraction.resolution.keys import PlainRecord, row_of
from durable_batches.extraction.resolution.links import Decision
from durable_batches.extraction.resolution.pages import LARGEST_PAGE, ClusterPage, Known, page_name
from durable_batches.extraction.resolution.scoring import Scorer, link_columns
from durable_batches.extraction.resolution.settings import Settings
from durable_batches.extraction.resolution.training import (
    CountedPatterns,
    RandomPairs,
    ResolutionModel,
    count_patterns,
    count_random_pairs,
    train,
)

__all__ = ["Engine"]

_LINKS_OF_A_PAGE: Final = 100_000


class Engine:
    """Compute the pages of one resolution.

    Args:
        folder: Where the pages of earlier steps are, each a file of its name; those of an earlier batch in `earlier`.
        settings: What is computed with.
        version: The version of the steps.
        decisions: What people have decided.
    """

    def __init__(self, folder: Path, settings: Settings, version: str, decisions: Sequence[Decision]) -> None:
        self._folder = folder
        self._settings = settings
        self._version = version
        self._decisions = tuple(decisions)
        self._connection = open_database(folder, settings)
        self._scorer: Scorer | None = None
        self._clusterer: Clusterer | None = None
        self._steps: dict[str, Callable[[int], bytes]] = {
            "known": lambda _: self._json(self._take_over()),
            "known-records": lambda page: self._known_page("kept_record", "id", self._settings.page_records, page),
            "known-links": lambda page: self._known_page("kept_link", "a, b", _LINKS_OF_A_PAGE, page),
            "known-members": lambda page: self._known_page("kept_member", "id", _LINKS_OF_A_PAGE, page),
            "plan": lambda _: self._json(self._plan()),
            "random-pairs": lambda _: self._json(self._random_pairs()),
            "patterns": lambda _: self._json(self._patterns()),
            "model": lambda _: self._json(self._model()),
            "score": self._score,
            "links": lambda _: self._json(self._clusters().link_plan()),
            "gaps": self._gaps,
            "clustering": lambda _: self._json(self._clusters().clustering()),
            "clusters": lambda page: self._json(self._clusters().page(page)),
        }

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def page(self, step: str, page: int) -> bytes:
        """Compute a page.

        Raises:
            NonRetryableError: Two records of one id differ, or the page is too large to be recorded.
        """
        found = self._steps[step](page)
        if len(found) > LARGEST_PAGE:
            raise NonRetryableError(f"page {page} of {step} has {len(found)} bytes, more than {LARGEST_PAGE}")
        return found

    def records(self, page: int, records: Iterable[PlainRecord]) -> bytes:
        """Make records comparable, and return them as a page."""
        file = self._file(f"made-{page_name('records', page)}")
        record_page((row_of(record, self._settings.fields) for record in records), self._settings.columns, file)
        try:
            return file.read_bytes()
        finally:
            file.unlink()

    # ---- records -----------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self._folder / name

    def _files(self, *steps: str, folder: str = ".") -> list[Path]:
        """Return the pages of steps."""
        return [file for step in steps for file in sorted((self._folder / folder).glob(f"{step}-[0-9]*"))]

    def _pages(self, *steps: str, folder: str = ".") -> str:
        """Return the pages of steps as a list in SQL; empty if there are none."""
        return ", ".join(map(quoted, self._files(*steps, folder=folder)))

    def _read(self, *steps: str, folder: str = ".", otherwise: str) -> str:
        """Return a query of all rows of the pages of steps, or a query of none."""
        pages = self._pages(*steps, folder=folder)
        return f"select * from read_parquet([{pages}])" if pages else f"select * from ({otherwise}) where false"

    def _has(self, table: str) -> bool:
        return exists(self._connection, table)

    def _load_new(self) -> None:
        """Make the table `fresh`: the records of this batch."""
        run = self._connection.execute
        if self._has("fresh"):
            return
        run(f"create table fresh as select distinct * from read_parquet([{self._pages('records')}])")
        twice = rows(self._connection, "select id from fresh group by id having count(*) > 1 order by id limit 3")
        if twice:
            run("drop table fresh")
            ids = ", ".join(repr(row[0]) for row in twice)
            raise NonRetryableError(f"records of one id must be equal, and these differ: {ids}")

    def _load(self) -> None:
        """Make the table `rec`: all records, numbered by their ids."""
        if self._has("rec"):
            return
        self._load_new()
        known = self._read("known-records", otherwise="select * from fresh")
        fresh = "true" if self._known().retrain else "false"
        self._connection.execute(
            f"create table rec as with known as ({known}), every as ("
            f"select *, {fresh} fresh from known union all by name "
            "select *, true fresh from fresh where id not in (select id from known)) "
            "select (row_number() over (order by id) - 1)::int rid, * from every order by rid"
        )
        self._connection.execute("drop table fresh")

    # ---- what an earlier batch has left --------------------------------------------------------------------

    def _known(self) -> Known:
        file = self._file(page_name("known"))
        return Known.model_validate_json(file.read_bytes()) if file.exists() else Known()

    def _take_over(self) -> Known:
        """Find what of an earlier batch still holds: records that have not changed, and the links among them."""
        self._make_kept()
        model = self._earlier_model()
        known = number(self._connection, "select count(*) from kept_record")
        records = number(self._connection, "select count(*) from fresh where id not in (select id from kept_record)")
        retrain = model is None or model.version != self._version or known + records >= 2 * model.records

        def pages(table: str, size: int) -> int:
            return -(-number(self._connection, f"select count(*) from {table}") // size)

        return Known(
            records=pages("kept_record", self._settings.page_records),
            links=0 if retrain else pages("kept_link", _LINKS_OF_A_PAGE),
            members=pages("kept_member", _LINKS_OF_A_PAGE),
            retrain=retrain,
        )

    def _make_kept(self) -> None:
        if self._has("kept_member"):
            return
        self._load_new()
        run, settings = self._connection.execute, self._settings
        earlier = self._read("known-records", "records", folder="earlier", otherwise="select * from fresh")
        run(
            f"create table kept_record as select distinct * from ({earlier}) e where not exists (select 1 from fresh f "
            "where f.id = e.id and f is distinct from e)"
        )
        run(f"create table nothing ({link_columns(settings)})")
        links = self._read("known-links", "score", "gaps", folder="earlier", otherwise="select * from nothing")
        run(
            f"create table kept_link as select distinct * from ({links}) where a in (select id from kept_record) "
            "and b in (select id from kept_record)"
        )
        run("drop table nothing")
        members = {
            member: cluster.id
            for file in self._files("clusters", folder="earlier")
            for cluster in ClusterPage.model_validate_json(file.read_bytes()).clusters
            for member in cluster.members
        }
        arrow = load("pyarrow")
        columns = {"id": list(members), "cluster": list(members.values())}
        self._connection.register(
            "given", arrow.table(columns, arrow.schema([(name, arrow.string()) for name in columns]))
        )
        run("create table kept_member as select * from given")
        self._connection.unregister("given")

    def _known_page(self, table: str, order: str, size: int, page: int) -> bytes:
        self._make_kept()
        query = f"select * from {table} order by {order} limit {size} offset {page * size}"
        return write_page(self._connection, query, self._file(f"made-{table}"))

    def _earlier_model(self) -> ResolutionModel | None:
        file = self._folder / "earlier" / page_name("model")
        return ResolutionModel.model_validate_json(file.read_bytes()) if file.exists() else None

    # ---- candidates, model, scores -------------------------------------------------------------------------

    def _plan(self) -> BlockingPlan:
        self._load()
        return make_candidates(self._connection, self._settings)

    def _candidates(self) -> None:
        if not self._has("pair"):
            self._plan()

    def _random_pairs(self) -> RandomPairs:
        self._load()
        return count_random_pairs(self._connection, self._settings)

    def _patterns(self) -> CountedPatterns:
        self._load()
        self._candidates()
        return count_patterns(self._connection, self._settings)

    def _model(self) -> ResolutionModel:
        if not self._known().retrain:
            model = self._earlier_model()
            if model is not None:
                return model
        random = RandomPairs.model_validate_json(self._file(page_name("random-pairs")).read_bytes())
        counted = CountedPatterns.model_validate_json(self._file(page_name("patterns")).read_bytes())
        plan = BlockingPlan.model_validate_json(self._file(page_name("plan")).read_bytes())
        return train(self._settings, self._version, plan.records, random, counted)

    def _scores(self) -> Scorer:
        if self._scorer is None:
            self._load()
            model = ResolutionModel.model_validate_json(self._file(page_name("model")).read_bytes())
            self._scorer = Scorer(self._connection, self._settings, model)
        return self._scorer

    def _score(self, page: int) -> bytes:
        self._load()
        self._candidates()
        if not self._has("pair_page"):
            # By their first records, so that no sort of all pairs is needed.
            self._connection.execute(
                "create table pair_page as select l, "
                f"(sum(n) over (order by l) - n) // {self._settings.page_pairs} page "
                "from (select l, count(*) n from pair group by l)"
            )
        pairs = f"select l, r from pair join pair_page using (l) where page = {page}"
        return self._scores().page(pairs, self._file("made-score"), least=self._settings.floor)

    # ---- clusters ----------------------------------------------------------------------------------------

    def _gaps(self, page: int) -> bytes:
        return self._scores().page(self._clusters().gap_pairs(page), self._file("made-gaps"), least=None)

    def _clusters(self) -> Clusterer:
        if self._clusterer is None:
            self._load()
            run = self._connection.execute
            run(f"create or replace table link ({link_columns(self._settings)})")
            pages = self._pages("known-links", "score")
            if pages:
                run(f"insert into link select * from read_parquet([{pages}])")
            self._clusterer = Clusterer(self._connection, self._settings, self._decisions, self._former)
        self._clusterer.fill(self._pages("gaps"))
        return self._clusterer

    def _former(self) -> dict[str, str]:
        pages = self._pages("known-members")
        return dict(rows(self._connection, f"select id, cluster from read_parquet([{pages}])")) if pages else {}

    @staticmethod
    def _json(page: object) -> bytes:
        return page.model_dump_json().encode()  # type: ignore[attr-defined,no-any-return]
