// What durable_batches.web answers and sends. Generated from its schemas by `make typescript`; do not edit.
// Fields and tags that are not here may come with a newer server: ignore them.
// Schemas: 73dd5fd6a136306d4176d730350790f4301c106b98ebce89e2db2ac906e14ced

export type BatchState = Pending | Stage | Resolving | Completed | Failed | Cancelled;
export type JsonValue = unknown;
/**
 * An event of a batch, as `data` of the stream has it.
 */
export type BatchEvent =
  | BatchCreated
  | StateChanged
  | DocumentStarted
  | StageProgress
  | DocumentCompleted
  | DocumentRetrying
  | DocumentReleased
  | DocumentFailed
  | ResolutionStarted
  | ResolutionFailed
  | ResolutionCompleted
  | BatchCompleted
  | BatchFailed
  | BatchCancelled
  | BatchPaused
  | BatchResumed
  | BatchRedriven
  | BatchUpdated
  | DocumentsAdded
  | BatchSealed
  | DocumentSuspended
  | DocumentWoken
  | ProviderJobChanged
  | ResolutionReleased
  | UnknownEvent;

/**
 * Every schema by its name.
 */
export interface Schemas {
  AbortAll: AbortAll;
  Amount: Amount;
  Batch: Batch;
  BatchCancelled: BatchCancelled;
  BatchCompleted: BatchCompleted;
  BatchConfig: BatchConfig;
  BatchCreated: BatchCreated;
  BatchEnded: BatchEnded;
  BatchFailed: BatchFailed;
  BatchPage: BatchPage;
  BatchPaused: BatchPaused;
  BatchRedriven: BatchRedriven;
  BatchResumed: BatchResumed;
  BatchSealed: BatchSealed;
  BatchState: BatchState;
  BatchUpdated: BatchUpdated;
  BlockedLoop: BlockedLoop;
  Budget: Budget;
  Cancellation: Cancellation;
  Cancelled: Cancelled;
  Completed: Completed;
  ContinueOnFailure: ContinueOnFailure;
  Counts: Counts;
  DamagedBatch: DamagedBatch;
  DeadWorker: DeadWorker;
  Document: Document;
  DocumentCompleted: DocumentCompleted;
  DocumentFailed: DocumentFailed;
  DocumentFailure: DocumentFailure;
  DocumentPage: DocumentPage;
  DocumentReleased: DocumentReleased;
  DocumentRetrying: DocumentRetrying;
  DocumentStarted: DocumentStarted;
  DocumentSuspended: DocumentSuspended;
  DocumentWoken: DocumentWoken;
  DocumentsAdded: DocumentsAdded;
  ErrorDigest: ErrorDigest;
  ErrorGroup: ErrorGroup;
  ExplanationView: ExplanationView;
  Failed: Failed;
  IsolatedDocument: IsolatedDocument;
  JsonValue: JsonValue;
  LongCalls: LongCalls;
  ModelSpending: ModelSpending;
  NoWorker: NoWorker;
  Pause: Pause;
  PausedBatch: PausedBatch;
  Pausing: Pausing;
  Pending: Pending;
  Problem: Problem;
  ProviderJobChanged: ProviderJobChanged;
  QueuedDocuments: QueuedDocuments;
  ResolutionCompleted: ResolutionCompleted;
  ResolutionFailed: ResolutionFailed;
  ResolutionReleased: ResolutionReleased;
  ResolutionStarted: ResolutionStarted;
  ResolverStatus: ResolverStatus;
  Resolving: Resolving;
  Resumption: Resumption;
  RetryFailed: RetryFailed;
  RunningDocuments: RunningDocuments;
  Spending: Spending;
  Stage: Stage;
  StageCount: StageCount;
  StageProgress: StageProgress;
  StageTime: StageTime;
  StateChanged: StateChanged;
  SuspendedDocuments: SuspendedDocuments;
  ThrottledLimiter: ThrottledLimiter;
  Timeline: Timeline;
  TimelinePoint: TimelinePoint;
  UnknownEvent: UnknownEvent;
  UnselectedBatch: UnselectedBatch;
  BatchEvent: BatchEvent;
  ConfigChanges: ConfigChanges;
}
/**
 * The first failed document ends the batch as FAILED: no more is claimed, and running documents are cancelled.
 */
export interface AbortAll {
  tag: "abort-all";
}
/**
 * Tokens and money: an estimate of what a call takes of a provider, or what calls took.
 *
 * Attributes:
 *     tokens: Tokens: those of the prompt and, where the provider counts them, of the longest answer.
 *     cost: Money, in the one currency that the application reckons in; kept to twelve decimal places.
 *
 * Raises:
 *     ConfigurationError: `tokens` is no int, or `cost` no `Decimal` and no int; or one is negative, or not finite.
 */
export interface Amount {
  tokens: number;
  cost: string;
}
/**
 * A batch at one moment, and where it is found.
 */
export interface Batch {
  batch_id: string;
  workflow: string;
  version: string;
  state: BatchState;
  paused: boolean;
  counts: Counts;
  stages: StageCount[];
  percentage: number;
  documents_per_second: number | null;
  eta: string | null;
  seq: number;
  run: number;
  created_at: string;
  started_at: string | null;
  ended_at: string | null;
  metadata: {
    [k: string]: string;
  };
  isolated: number;
  long_calls: LongCalls[];
  pauses: Pause[];
  spent: Amount;
  url: string;
}
/**
 * All documents are stored, and none has started.
 */
export interface Pending {
  total: number;
  tag: "pending";
}
/**
 * Base of every stage state; a subclass adds a `tag: Literal[...]` and is a frozen dataclass by inheriting.
 *
 * The batch is in the earliest stage that any of its unfinished documents is in; `done` of `total` documents
 * are past it.
 */
export interface Stage {
  done: number;
  total: number;
  tag: string;
}
/**
 * Every document has finished; the resolver runs on all of the results.
 */
export interface Resolving {
  counts: Counts;
  tag: "resolving";
}
/**
 * The documents of a batch by their status; the parts sum to `total`.
 */
export interface Counts {
  total: number;
  pending: number;
  running: number;
  waiting: number;
  succeeded: number;
  failed: number;
  cancelled: number;
}
/**
 * Every document has finished, and the resolver, if there is one, has succeeded.
 */
export interface Completed {
  counts: Counts;
  tag: "completed";
}
/**
 * The batch ended early; `error` says why.
 */
export interface Failed {
  counts: Counts;
  error: string;
  tag: "failed";
}
/**
 * The batch was cancelled; `reason` says why.
 */
export interface Cancelled {
  counts: Counts;
  reason: string;
  tag: "cancelled";
}
/**
 * Where the documents of a batch are with one stage.
 */
export interface StageCount {
  stage: string;
  current: number;
  done: number;
  total: number;
}
/**
 * Calls of an activity without a timeout run for longer than `Worker(long_call_warning=)`: they may never end.
 */
export interface LongCalls {
  activity: string;
  calls: number;
  since: string;
  workers: {
    [k: string]: number;
  };
  tag: "long-calls";
}
/**
 * A pause of a batch: nothing of it is started.
 */
export interface Pause {
  reason: "operator" | "budget" | "canary" | "quota" | (string & {});
  since: string;
  until: string | null;
  note: string;
  running: "calls" | "documents";
}
/**
 * The batch ended as CANCELLED; its last event.
 */
export interface BatchCancelled {
  batch_id: string;
  seq: number;
  at: string;
  counts: Counts;
  reason: string;
  tag: "batch_cancelled";
}
/**
 * The batch ended as COMPLETED; its last event.
 */
export interface BatchCompleted {
  batch_id: string;
  seq: number;
  at: string;
  counts: Counts;
  tag: "batch_completed";
}
/**
 * How a batch runs. Recorded at submission; attaching to an existing batch keeps its configuration.
 *
 * Raises:
 *     pydantic.ValidationError: A value is out of range or of a wrong type (a number in place of a `timedelta`, for
 *         example), or a name is unknown.
 */
export interface BatchConfig {
  concurrency: number;
  failure_policy: ContinueOnFailure | AbortAll | RetryFailed;
  document_timeout: number | null;
  deadline: number | null;
  max_crashes: number;
  quota_patience: number | null;
  budget: Budget | null;
  metadata: {
    [k: string]: string;
  };
}
/**
 * A failed document is counted and the others continue, until a threshold (if there is one) is exceeded.
 *
 * Attributes:
 *     max_failures: With more failed documents than this, the batch FAILS. None: no limit.
 *     max_failure_ratio: With a larger share of all the batch's documents failed than this (0 to 1), the batch
 *         FAILS. None: no limit.
 *     min_failures: With fewer failed documents than this, the ratio does not apply: one failure does not end a small
 *         batch.
 *
 * Raises:
 *     ConfigurationError: An option is of a wrong type, or out of range.
 */
export interface ContinueOnFailure {
  max_failures: number | null;
  max_failure_ratio: number | null;
  min_failures: number;
  tag: "continue-on-failure";
}
/**
 * A failed document runs again later, from its checkpoints, and holds no slot while it waits.
 *
 * Attributes:
 *     max_attempts: Failing attempts of a document, the first one included; crashes and deploys do not count.
 *     backoff: The delay before the second attempt; it doubles for each further one, up to an hour.
 *     then: The policy that applies once a document's attempts are used up.
 *
 * Raises:
 *     ConfigurationError: An option is of a wrong type, or out of range: `max_attempts` below 1, `backoff` negative or
 *         longer than 3650 days.
 */
export interface RetryFailed {
  max_attempts: number;
  backoff: number;
  then: ContinueOnFailure | AbortAll;
  tag: "retry-failed";
}
/**
 * How much the calls of a batch may spend (`ActivityContext.spend`), over all of its runs.
 *
 * At least one of `tokens` and `cost` is given; the one that is reached first counts.
 *
 * Raises:
 *     pydantic.ValidationError: A value is out of range or of a wrong type (a float), or none is given.
 */
export interface Budget {
  tokens: number | null;
  cost: string | null;
  then: "pause" | "fail";
}
/**
 * The batch was sealed: all of its documents are stored, and it may run.
 */
export interface BatchCreated {
  batch_id: string;
  seq: number;
  at: string;
  workflow: string;
  version: string;
  total: number;
  open: boolean;
  tag: "batch_created";
}
/**
 * The batch has ended.
 */
export interface BatchEnded {
  counts: Counts;
  tag: "ended";
}
/**
 * The batch ended as FAILED; its last event.
 */
export interface BatchFailed {
  batch_id: string;
  seq: number;
  at: string;
  counts: Counts;
  error: string;
  tag: "batch_failed";
}
/**
 * Batches, newest first.
 */
export interface BatchPage {
  batches: Batch[];
  next: string | null;
}
/**
 * No document of the batch is started until it is resumed, or until `until`.
 */
export interface BatchPaused {
  batch_id: string;
  seq: number;
  at: string;
  reason: "operator" | "budget" | "canary" | "quota" | (string & {});
  note: string;
  until: string | null;
  running: "calls" | "documents";
  tag: "batch_paused";
}
/**
 * The batch's run of this number begins, with these counts; the only event that follows a run's last one.
 */
export interface BatchRedriven {
  batch_id: string;
  seq: number;
  at: string;
  run: number;
  counts: Counts;
  tag: "batch_redriven";
}
/**
 * The pause for this reason is over.
 */
export interface BatchResumed {
  batch_id: string;
  seq: number;
  at: string;
  reason: "operator" | "budget" | "canary" | "quota" | (string & {});
  tag: "batch_resumed";
}
/**
 * No more documents can be added.
 */
export interface BatchSealed {
  batch_id: string;
  seq: number;
  at: string;
  total: number;
  tag: "batch_sealed";
}
/**
 * The batch's configuration was changed; durations are in seconds, and decimal numbers are strings.
 */
export interface BatchUpdated {
  batch_id: string;
  seq: number;
  at: string;
  changes: {
    [k: string]: JsonValue;
  };
  tag: "batch_updated";
}
/**
 * A worker's event loop does not turn, or did not a moment ago: code that it runs blocks it.
 *
 * Until it returns, nothing else moves in that process: no other document, no timeout, no claim.
 */
export interface BlockedLoop {
  worker: string;
  since: string;
  where: string;
  documents: number;
  until: string | null;
  tag: "blocked-loop";
}
/**
 * What came of a cancellation.
 */
export interface Cancellation {
  cancelled: boolean;
}
/**
 * The counts of the batch's row contradict each other: workers pass over it, and nothing of it is claimed.
 */
export interface DamagedBatch {
  problem: string;
  tag: "damaged";
}
/**
 * A worker that owns documents of the batch does not renew its lease: it is dead, frozen or cut off.
 */
export interface DeadWorker {
  worker: string;
  documents: number;
  lease_until: string;
  tag: "dead-worker";
}
/**
 * A document as it is stored.
 */
export interface Document {
  document_id: string;
  position: number;
  status: "pending" | "running" | "waiting" | "succeeded" | "failed" | "cancelled" | (string & {});
  stage: string | null;
  attempts: number;
  updated_at: string;
  worker: string | null;
  activity: string | null;
  activity_since: string | null;
  due: string | null;
  failure: DocumentFailure | null;
  document: JsonValue;
  result: JsonValue;
}
/**
 * A failed document and its error.
 */
export interface DocumentFailure {
  document_id: string;
  error: string;
  error_type: string;
  activity: string | null;
  attempts: number;
  tag: "failed";
}
/**
 * A document's result is recorded.
 */
export interface DocumentCompleted {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  percentage: number;
  unused_checkpoints: number;
  tag: "document_completed";
}
/**
 * A document failed, and is not retried.
 */
export interface DocumentFailed {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  error: string;
  percentage: number;
  fingerprint: string;
  tag: "document_failed";
}
/**
 * Documents in submission order.
 */
export interface DocumentPage {
  documents: Document[];
  next: number | null;
}
/**
 * A running document was released, and waits for a worker again.
 *
 * `reason` is "shutdown" (a clean release), "crash" (its worker died) or "paused" (its batch was paused).
 */
export interface DocumentReleased {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  reason: "shutdown" | "crash" | "paused" | (string & {});
  crashes: number;
  tag: "document_released";
}
/**
 * A document failed and will run again, from its checkpoints, at `due`. It waits without holding a slot.
 */
export interface DocumentRetrying {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  failures: number;
  due: string;
  error: string;
  tag: "document_retrying";
}
/**
 * A worker claimed the document: its attempt of this number (1 is the first) begins.
 */
export interface DocumentStarted {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  attempt: number;
  tag: "document_started";
}
/**
 * A document waits for these signals, timers or answers without a slot; it runs again at `due` at the latest.
 */
export interface DocumentSuspended {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  waits_for: string[];
  due: string | null;
  tag: "document_suspended";
}
/**
 * What a document waited for under this name was answered; it can run again.
 */
export interface DocumentWoken {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  name: string;
  tag: "document_woken";
}
/**
 * Documents were added to an open batch, which has `total` by now; the percentage may be lower than before.
 */
export interface DocumentsAdded {
  batch_id: string;
  seq: number;
  at: string;
  count: number;
  total: number;
  percentage: number;
  tag: "documents_added";
}
/**
 * The failures of a batch's run, in groups.
 */
export interface ErrorDigest {
  batch_id: string;
  run: number;
  failed: number;
  groups: ErrorGroup[];
  others: number;
}
/**
 * Documents that failed for one reason.
 */
export interface ErrorGroup {
  fingerprint: string;
  error_type: string;
  activity: string | null;
  stage: string | null;
  count: number;
  message: string;
  examples: DocumentFailure[];
  first_at: string;
  last_at: string;
}
/**
 * Why a batch is where it is.
 */
export interface ExplanationView {
  batch_id: string;
  state: string;
  headline: string;
  reasons: (
    | DamagedBatch
    | RunningDocuments
    | SuspendedDocuments
    | NoWorker
    | UnselectedBatch
    | DeadWorker
    | BlockedLoop
    | LongCalls
    | ThrottledLimiter
    | IsolatedDocument
    | QueuedDocuments
    | PausedBatch
    | ResolverStatus
    | BatchEnded
  )[];
  sentences: string[];
}
/**
 * Documents run.
 */
export interface RunningDocuments {
  documents: number;
  oldest_document_id: string;
  oldest_since: string;
  workers: {
    [k: string]: number;
  };
  waiting: number;
  oldest_activity: string | null;
  oldest_activity_since: string | null;
  activities: {
    [k: string]: number;
  };
  tag: "running";
}
/**
 * Documents wait without holding a slot, grouped by what they wait for.
 */
export interface SuspendedDocuments {
  what: "signal" | "timer" | "retry" | "rate-limit" | "provider-batch" | (string & {});
  name: string;
  documents: number;
  next_due: string | null;
  tag: "suspended";
}
/**
 * No worker that is alive was started with this workflow in this version, or has a document of the batch.
 */
export interface NoWorker {
  workflow: string;
  version: string;
  known: [unknown, unknown][];
  too_old: string[];
  tag: "no-worker";
}
/**
 * The workers that were started with this workflow in this version take from other batches only.
 *
 * Which they take from is what `Worker(batches=)` says.
 */
export interface UnselectedBatch {
  workflow: string;
  version: string;
  workers: {
    [k: string]: "mine" | "filter";
  };
  tag: "unselected";
}
/**
 * Calls of the batch wait for permits of a limiter.
 */
export interface ThrottledLimiter {
  limiter: string;
  waiting: number;
  since: string;
  workers: {
    [k: string]: number;
  };
  breaker: "closed" | "open" | "half-open";
  until: string | null;
  tag: "throttled";
}
/**
 * A document that was running at several crashes runs beside few others, or none, for some time.
 */
export interface IsolatedDocument {
  document_id: string;
  crashes: number;
  worker: string | null;
  since: string;
  waiting: number;
  tag: "isolated";
}
/**
 * Documents are due and not claimed: the workers that could are full, or serve others first.
 */
export interface QueuedDocuments {
  documents: number;
  since: string;
  tag: "queued";
}
/**
 * The batch is paused: nothing of it is started.
 */
export interface PausedBatch {
  reason: "operator" | "budget" | "canary" | "quota" | (string & {});
  since: string;
  until: string | null;
  note: string;
  tag: "paused";
}
/**
 * All documents have finished: the resolver runs, or waits.
 */
export interface ResolverStatus {
  attempt: number;
  waits: ("worker" | "retry" | "signal" | "timer") | null;
  activity: string | null;
  activity_since: string | null;
  tag: "resolver";
}
/**
 * What calls of one model have spent.
 */
export interface ModelSpending {
  tokens: number;
  input_tokens: number;
  output_tokens: number;
  cost: string;
  unpriced_calls: number;
}
/**
 * What came of a pause.
 */
export interface Pausing {
  paused: boolean;
}
/**
 * Why a request was refused (RFC 9457).
 */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: string;
}
/**
 * A provider's batch job is in another state, with this number of requests answered.
 */
export interface ProviderJobChanged {
  batch_id: string;
  seq: number;
  at: string;
  provider: string;
  job: number;
  state: "submitted" | "running" | "ended" | "expired" | "cancelled" | (string & {});
  requests: number;
  succeeded: number;
  failed: number;
  tag: "provider_job_changed";
}
/**
 * The resolver's result is recorded.
 */
export interface ResolutionCompleted {
  batch_id: string;
  seq: number;
  at: string;
  tag: "resolution_completed";
}
/**
 * An attempt of the resolver failed; it runs again at `due`, unless that is None.
 */
export interface ResolutionFailed {
  batch_id: string;
  seq: number;
  at: string;
  error: string;
  due: string | null;
  tag: "resolution_failed";
}
/**
 * The running resolver was released, and waits for a worker again; `reason` is as for a document.
 */
export interface ResolutionReleased {
  batch_id: string;
  seq: number;
  at: string;
  reason: "shutdown" | "crash" | "paused" | (string & {});
  tag: "resolution_released";
}
/**
 * A worker claimed the resolver; attempt 1 is the first.
 */
export interface ResolutionStarted {
  batch_id: string;
  seq: number;
  at: string;
  attempt: number;
  tag: "resolution_started";
}
/**
 * What came of a resumption.
 */
export interface Resumption {
  pauses: Pause[];
}
/**
 * What a batch has spent, over all of its runs.
 */
export interface Spending {
  total: Amount;
  not_paid_again: Amount;
  by_stage: {
    [k: string]: Amount;
  };
  by_activity: {
    [k: string]: Amount;
  };
  by_model: {
    [k: string]: ModelSpending;
  };
  resolver: Amount;
  unpriced_calls: number;
}
/**
 * A document entered a stage; `current` of `total` documents have entered it by now.
 */
export interface StageProgress {
  batch_id: string;
  seq: number;
  at: string;
  document_id: string;
  stage: string;
  current: number;
  total: number;
  percentage: number;
  tag: "stage_progress";
}
/**
 * How long documents were in one stage: from the event of entering it to that of leaving it, waits included.
 */
export interface StageTime {
  stage: string;
  documents: number;
  median_seconds: number | null;
  p95_seconds: number | null;
  longest_seconds: number | null;
}
/**
 * The batch went from one state to another; both are tags.
 */
export interface StateChanged {
  batch_id: string;
  seq: number;
  at: string;
  previous: string;
  state: string;
  tag: "state_changed";
}
/**
 * How a batch went, by its events up to `seq`.
 */
export interface Timeline {
  batch_id: string;
  seq: number;
  after: number;
  width_seconds: number;
  points: TimelinePoint[];
  until: string | null;
  stages: StageTime[];
}
/**
 * A span of time: it reaches to the next point, or to the end of the timeline.
 */
export interface TimelinePoint {
  at: string;
  finished: number;
  documents_per_second: number;
  running: number;
}
/**
 * An event that a newer version of the library has written and this one does not know.
 */
export interface UnknownEvent {
  batch_id: string;
  seq: number;
  at: string;
  name: string;
  data: string;
  tag: "unknown";
}
export interface ConfigChanges {
  concurrency?: number;
  failure_policy?: ContinueOnFailure | AbortAll | RetryFailed;
  document_timeout?: number | null;
  deadline?: number | null;
  budget?: Budget | null;
}
