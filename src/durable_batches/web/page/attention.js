// What waits: for time to pass, and for a tab to be looked at.

/** Wait so long, or until the signal. */
export const sleep = (ms, signal) => new Promise((resolve) => {
  const end = () => { clearTimeout(timer); signal?.removeEventListener("abort", end); resolve(); };
  const timer = setTimeout(end, ms);
  signal?.addEventListener("abort", end, { once: true });
});

/** Something that is waited for, and that may have come already. */
export function bell() {
  let rung = false;
  let hear = null;
  return {
    ring() { rung = true; hear?.(); },
    still() { rung = false; },
    /** Wait for it, for so long, or until the signal. */
    async heard(ms, signal) {
      if (!rung && !signal.aborted) {
        const heard = new AbortController();
        const end = () => heard.abort();
        hear = end;
        signal.addEventListener("abort", end, { once: true });
        await sleep(ms, heard.signal);
        signal.removeEventListener("abort", end);
        hear = null;
      }
      rung = false;
    },
  };
}

/** Wait until this tab is looked at, or until the signal. */
export const seen = (signal) => new Promise((resolve) => {
  if (!document.hidden || signal.aborted) { resolve(); return; }
  const looked = () => { if (!document.hidden || signal.aborted) { document.removeEventListener("visibilitychange", looked); resolve(); } };
  document.addEventListener("visibilitychange", looked);
  signal.addEventListener("abort", looked, { once: true });
});

/** Wait until this tab has not been looked at for so long, or until the signal. */
export const left = (ms, signal) => new Promise((resolve) => {
  let timer = 0;
  const end = () => { clearTimeout(timer); document.removeEventListener("visibilitychange", change); resolve(); };
  const change = () => { clearTimeout(timer); if (document.hidden) timer = setTimeout(end, ms); };
  document.addEventListener("visibilitychange", change);
  signal.addEventListener("abort", end, { once: true });
  change();
});
