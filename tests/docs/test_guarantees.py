"""Each statement of the page on guarantees is held by tests, which are named here."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "explanation" / "guarantees.md"

HELD_BY: Final[Mapping[str, Sequence[str]]] = {
    # ---- what is guaranteed
    "A result that is recorded is never": [
        "processes/test_marks.py::test_killed_at_a_mark",
        "runtime/test_replay.py::test_it_may_be_interrupted_at_every_call",
    ],
    "A workflow continues after": ["processes/test_marks.py::test_killed_at_a_mark"],
    "A submission that has returned": [
        "processes/test_submit.py::test_a_batch_that_was_never_wholly_there_is_not_there",
        "processes/test_submit.py::test_a_dead_submitters_batch_is_loaded_anew",
    ],
    "A process that has lost its lease": [
        "processes/test_processes.py::test_a_process_that_was_stopped_past_its_lease_is_fenced_and_begins_anew",
        "worker/test_outages.py::test_no_activity_begins_after_the_lease_can_have_run_out",
        "soak/test_freezes.py::test_processes_that_were_stopped_past_their_lease_begin_and_write_nothing",
    ],
    "The resolver runs after all": ["processes/test_last_documents.py::test_the_resolver_runs_once"],
    "State, counts, events and results agree": [
        "processes/test_marks.py::test_killed_at_a_mark",
        "testing/test_crashes.py::test_a_workflow_that_keeps_to_the_rules_survives",
    ],
    "The failure of one document": [
        "runtime/test_retries.py::test_whatever_a_workflow_raises_fails_its_document_only",
        "worker/test_store_faults.py::test_one_documents_data_is_refused_and_its_neighbours_do_not_notice",
    ],
    # ---- what each fault costs
    "A process is killed (`kill": [
        "processes/test_marks.py::test_killed_at_a_mark",
        "processes/test_recovery.py::test_where_a_death_can_be_seen_nobody_waits",
        "processes/test_recovery.py::test_where_a_death_cannot_be_seen_the_lease_decides",
        "processes/test_crash_loop.py::test_one_kill_slows_nothing_down",
    ],
    "A thread of": [
        "processes/test_exit.py::test_a_thread_that_never_ends_does_not_keep_the_process",
        "processes/test_exit.py::test_a_process_that_never_ends_does_not_keep_the_one_that_started_it",
    ],
    "An activity forks": [
        "processes/test_forks.py::test_a_child_that_comes_back_to_the_library_ends",
        "processes/test_forks.py::test_no_use_of_the_parents_hangs",
    ],
    "A batch is paused": [
        "orchestrator/test_pause.py::test_running_calls_finish_and_no_other_starts_until_it_is_resumed",
        "orchestrator/test_queued_calls.py::test_calls_that_wait_for_a_thread_do_not_begin",
        "orchestrator/test_queued_calls.py::test_calls_that_wait_for_a_place_do_not_begin",
        "runtime/test_not_begun.py::test_a_call_whose_dependency_is_being_opened_is_not_waited_for",
    ],
    "A new version of a workflow": [
        "orchestrator/test_stranded.py::test_it_is_named_at_the_start_when_it_is_submitted_again_and_after_a_minute"
    ],
    "A process of an executor": [
        "executors/test_run_on.py::test_a_lost_call_uses_no_attempt",
        "executors/test_run_on.py::test_a_poisonous_call_counts_as_crashes_of_its_document_alone",
        "processes/test_executors.py::test_children_that_hang_exit_or_are_killed_cost_their_own_documents_alone",
    ],
    "A deployment": [
        "orchestrator/test_queued_calls.py::test_calls_that_wait_for_a_thread_do_not_begin",
        "processes/test_drain.py::test_a_deploy_finishes_what_runs_and_repeats_nothing",
        "processes/test_drain.py::test_a_drain_is_bounded",
    ],
    "The store is away": [
        "stores/test_outages.py::test_each_call_is_made_once_over_an_outage_that_is_longer_than_the_lease",
        "worker/test_outages.py::test_an_outage_repeats_no_call",
        "worker/test_outages.py::test_an_outage_at_any_write_repeats_no_call",
        "worker/test_store_faults.py::test_a_file_that_another_process_holds_is_waited_for",
        "postgres/test_faults.py::test_an_outage_is_nobodys_crash",
        "postgres/test_faults.py::test_a_failover_that_leads_to_a_replica_for_some_time",
    ],
    "The disk is full": ["worker/test_store_faults.py::test_work_goes_on_when_a_full_disk_has_room_again"],
    "The reply to a commit": [
        "worker/test_store_faults.py::test_a_commit_is_made_once_whatever_became_of_its_reply",
        "postgres/test_faults.py::test_a_commit_whose_reply_is_lost_is_made_once",
    ],
    "One worker is cut off": [
        "worker/test_outages.py::test_the_first_record_wins",
        "worker/test_outages.py::test_what_finished_is_recorded_by_the_next_session",
    ],
    "A process stands still": [
        "processes/test_processes.py::test_a_process_that_was_stopped_past_its_lease_is_fenced_and_begins_anew",
        "worker/test_outages.py::test_what_waits_for_a_lease_that_is_lost_never_begins",
    ],
    "The only process stands still": [
        "testing/test_crash_loops.py::test_a_lone_worker_that_was_frozen_renews_first_and_counts_no_crash",
    ],
    "A process is killed while": [
        "worker/test_outages.py::test_a_worker_that_does_not_come_back_is_expired_a_lease_later",
    ],
    "More than `max_kept_bytes`": ["worker/test_outages.py::test_results_that_are_kept_are_bounded"],
    "The process dies whenever": [
        "processes/test_crash_loop.py::test_poisoned_documents_fail_and_the_others_complete",
        "testing/test_crash_loops.py::test_one_poison_document_among_a_hundred_is_found",
    ],
    "An activity raises": [
        "runtime/test_retries.py::test_when_the_attempts_are_used_up_the_document_fails",
        "runtime/test_retries.py::test_an_attempt_over_its_timeout_is_cancelled_and_tried_again",
    ],
    "A provider is overloaded": [
        "runtime/test_retries.py::test_a_wait_for_a_provider_uses_no_attempt",
        "runtime/test_quota.py::test_an_overload_that_does_not_end_pauses_the_batch_after_an_hour",
    ],
    "An account is empty": [
        "runtime/test_quota.py::test_an_empty_account_costs_one_refused_call_a_look",
        "runtime/test_quota.py::test_a_batch_fails_when_no_call_has_succeeded_for_its_patience",
        "runtime/test_quota.py::test_a_pause_outlives_its_process",
    ],
    "A document fails": [
        "runtime/test_replay.py::test_a_retry_forgets_the_failure_that_ended_the_attempt_and_keeps_the_rest",
    ],
    "The resolver fails": ["orchestrator/test_resolver.py::test_its_activities_are_recorded"],
    "The batch is cancelled": [
        "orchestrator/test_cancel.py::test_what_runs_is_cancelled_and_nothing_starts_afterwards",
        "orchestrator/test_cancel.py::test_a_result_that_comes_late_is_recorded_and_changes_nothing_else",
    ],
    "A submitter dies": [
        "processes/test_submit.py::test_a_batch_that_was_never_wholly_there_is_not_there",
        "worker/test_abandoned.py::test_what_nobody_can_seal_is_removed",
    ],
    "The wall clock is set": [
        "test_clock.py::test_a_retry_is_due_though_the_clock_was_set_back",
        "test_clock.py::test_a_deadline_does_not_fire_because_the_clock_was_set_forward",
        "stores/test_sqlite.py::test_the_wall_clock_does_not_move_leases",
    ],
    "The clock of a Postgres server": [
        "postgres/test_server_clock.py::test_a_clock_that_is_set_takes_no_lease_from_the_living",
        "postgres/test_server_clock.py::test_time_that_passes_is_no_jump",
        "postgres/test_server_clock.py::test_a_retry_and_a_deadline_are_met_though_the_servers_clock_is_set",
    ],
    # ---- what is not guaranteed, where the page says what happens instead
    "**Effects exactly once": ["runtime/test_replay.py::test_the_idempotency_key_is_the_same_after_an_interruption"],
    "**The end of a failed": [
        "orchestrator/test_submit.py::test_a_batch_that_ended_without_all_names_the_way",
        "script/test_run_batch.py::test_a_batch_that_ended_without_documents_names_the_way",
    ],
    "**Code between": ["runtime/test_replay.py::test_only_what_was_not_recorded_is_run"],
    "**The end of code": [
        "worker/test_left_behind.py::test_closing_is_bounded_and_names_what_it_left_behind",
        "worker/test_left_behind.py::test_a_worker_that_lost_its_lease_goes_on_without_what_does_not_end",
    ],
    "**What the database": ["postgres/test_bad_input.py::test_a_server_without_fsync_is_warned_about_once"],
    "**A database file": [
        "stores/test_sqlite_file.py::test_nothing_is_acknowledged_once_the_file_is_gone",
        "stores/test_sqlite_file.py::test_a_commit_into_a_file_that_is_deleted_meanwhile_is_not_acknowledged",
    ],
    "**The moment of a retry": [],
    "**One time for all": [],
    "**A time for": [
        "processes/test_processes.py::test_only_the_lease_tells_that_a_process_of_another_container_is_dead"
    ],
    "**Stores of your own": ["worker/test_outages.py::test_a_store_of_level_1_is_given_no_late_results"],
}
"""How each statement of the page begins, and the tests that hold it; none where the page promises nothing."""


def test_each_statement_is_held_by_tests() -> None:
    statements = _statements()
    unheld = [found for found in statements if not any(map(found.startswith, HELD_BY))]
    unsaid = [begin for begin in HELD_BY if not any(found.startswith(begin) for found in statements)]
    assert (unheld, unsaid) == ([], [])


def test_the_tests_exist() -> None:
    assert [name for names in HELD_BY.values() for name in names if not _exists(name)] == []


def _statements() -> list[str]:
    """Return the items of the page's lists, and the faults of its table."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    items = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    return [*items, *(row for row in rows if row not in ("fault", "---"))]


def _exists(name: str) -> bool:
    path, test = name.split("::")
    return test in _tests_of(ROOT / "tests" / path)


@cache
def _tests_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))
