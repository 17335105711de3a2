// The server, and the token that it is asked with.
// The token of `serve` comes in the fragment of the address, which is never sent. It is kept no longer than this tab; a
// new tab is handed it by one that is open, over a channel on which browsers let only pages of this origin listen.
import { Refused } from "./stream.js";

const KEY = `token ${new URL(".", location.href).pathname}`;
const ANSWERED = 300;
const channel = new BroadcastChannel(KEY);
const refused = new Set();
const arrived = new Set();

let token = sessionStorage.getItem(KEY);

/** Headers with which the server is asked. */
export const headers = () => (token === null ? {} : { Authorization: `Bearer ${token}` });
export const hasToken = () => token !== null;

export async function getJSON(url, options) {
  const response = await fetch(url, { headers: headers(), ...options });
  if (!response.ok) throw new Refused(response.status);
  return response.json();
}

/** A token as a header can bear it: of any other, which the server does not have either, the server is to say so. */
const bearable = (given) => (/^[\x20-\x7e\xa0-\xff]*$/.test(given) ? given : encodeURIComponent(given));

function take(given) {
  token = given;
  sessionStorage.setItem(KEY, given);
  for (const tell of arrived) tell();
}

/** Take a token that the user gives, and have other tabs that lack one take it, too. */
export function signIn(typed) {
  const given = bearable(typed);
  refused.delete(given);
  take(given);
  channel.postMessage({ token, signedIn: true });
}

/** Forget the token, in all tabs. */
export function signOut() {
  channel.postMessage({ forget: token });
  drop();
}

function drop() {
  if (token !== null) refused.add(token);
  token = null;
  sessionStorage.removeItem(KEY);
}

/** Called when another tab has signed out. */
export function onSignOut(tell) {
  channel.addEventListener("message", ({ data }) => {
    if (data.forget !== undefined && data.forget === token) { drop(); tell(); }
  });
}

channel.addEventListener("message", ({ data }) => {
  if (data.ask && token !== null) channel.postMessage({ token });
  if (typeof data.token !== "string") return;
  if (data.signedIn) refused.delete(data.token);
  if (token === null && !refused.has(data.token)) take(data.token);
});

/** Ask the other tabs for a token, as the server has refused this one's; return whether one has come in time. */
export async function handedOver() {
  drop();
  channel.postMessage({ ask: true });
  return Promise.race([signedIn().then(() => true), new Promise((resolve) => setTimeout(resolve, ANSWERED, false))]);
}

/** Wait until there is a token. */
export async function signedIn() {
  if (token === null) await new Promise((resolve) => arrived.add(resolve));
  arrived.clear();
}

function look() {
  if (!location.hash.startsWith("#token=")) return;
  const written = location.hash.slice(7);
  history.replaceState(null, "", location.pathname + location.search);
  signIn(decoded(written));
}

/** What a part of an address stands for; one that stands for nothing is left as it is. */
function decoded(written) {
  try {
    return decodeURIComponent(written);
  } catch {
    return written;
  }
}

look();
// Of an address that is opened where the page is already.
addEventListener("hashchange", look);
