"use strict";
// Conversations in the browser's storage. Each message has a key of its own, so two browser tabs add to one conversation without a conflict.

const CONVERSATIONS = "chat/";
const WRITING_SECONDS = 3; // after which a message that no browser tab has saved again is not being written

// Ids that sort by time, also those of one millisecond.
function newId() {
  newId.last = Math.max(Date.now(), newId.last + 1);
  return `${newId.last.toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
}
newId.last = 0;

const thisTab = newId(); // of this load of the page

// A tree of messages: an edited message is a new one with the same parent, and so is another answer.
class Conversation {
  constructor(id = newId()) {
    this.id = id;
    this.messages = new Map();
    this.chosen = new Map(); // the version to show, by parent; without one the newest is shown
    this.about = settings.get(this.key("about")) ?? {};
    for (const name of settings.names()) if (name.startsWith(this.key(""))) this.read(name.slice(this.key("").length));
  }

  key(message) {
    return `${CONVERSATIONS}${this.id}/${message}`;
  }

  // Take a message from the storage, where another browser tab may have written it.
  read(id) {
    if (id === "about") return;
    const stored = settings.get(this.key(id));
    if (typeof stored?.content === "string") this.messages.set(id, { ...stored, id });
  }

  // Add a message and show it.
  add(parent, role, content) {
    const message = { id: newId(), parent, role, content };
    this.messages.set(message.id, message);
    this.chosen.set(parent, message.id);
    return message;
  }

  // False if the storage is full or turned off: the message is only kept in memory.
  save(message) {
    const { id, ...content } = message;
    return settings.set(this.key(id), { ...content, saved: Date.now() });
  }

  saveAbout(about) {
    this.about = { ...this.about, ...about };
    return !this.messages.size || settings.set(this.key("about"), this.about);
  }

  versions(parent) {
    return [...this.messages.values()].filter((message) => message.parent === parent).sort((a, b) => a.id < b.id ? -1 : 1);
  }

  // The messages that are shown, in order.
  path() {
    const shown = [];
    for (let parent = ""; ; parent = shown.at(-1).id) {
      const versions = this.versions(parent);
      if (!versions.length) return shown;
      shown.push(versions.find((message) => message.id === this.chosen.get(parent)) ?? versions.at(-1));
    }
  }

  // The messages before one, in order.
  before(message) {
    const earlier = [];
    for (let parent = this.messages.get(message.parent); parent; parent = this.messages.get(parent.parent)) earlier.unshift(parent);
    return earlier;
  }

  title() {
    return firstWords(this.path().find(({ content }) => content.trim())?.content ?? "");
  }

  static isBeingWritten(message) {
    return message.state === "writing" && (message.writer === thisTab || Date.now() - message.saved < 1000 * WRITING_SECONDS);
  }

  // What the browser has stored, the conversation with the newest message first: {id, title}.
  static listed() {
    const found = new Map();
    for (const name of settings.names().filter((entry) => entry.startsWith(CONVERSATIONS) && !entry.endsWith("/about")).sort()) {
      const [, id, message] = name.split("/");
      found.set(id, { id, names: [...found.get(id)?.names ?? [], name], last: message });
    }
    const newest = [...found.values()].sort((a, b) => a.last < b.last ? 1 : -1);
    const title = (name) => firstWords(String(settings.get(name)?.content ?? ""));
    return newest.map(({ id, names }) => ({ id, title: title(names.find(title) ?? "") || "(no text)" }));
  }

  static clear(id) {
    for (const name of settings.names()) if (name.startsWith(`${CONVERSATIONS}${id}/`)) settings.set(name, null);
  }

  // The messages as the API takes them; two questions without an answer between them are one.
  static forApi(messages, system) {
    const sent = system ? [{ role: "system", content: system }] : [];
    for (const { role, content, thinking } of messages) {
      if (!content) continue;
      if (sent.at(-1)?.role === role) sent.at(-1).content += `\n\n${content}`;
      else sent.push({ role, content, ...(thinking && { reasoning_content: thinking }) });
    }
    return sent;
  }

  // A text that was continued: its beginning and the rest.
  text() {
    return `${this.path().map(({ content }) => content).join("")}\n`;
  }

  markdown() {
    const system = this.about.system ? [`**System:** ${this.about.system}`] : [];
    const said = this.path().map(({ role, content, model }) => `**${role === "user" ? "You" : model ?? "Model"}:** ${content}`);
    return [`# ${this.title()}`, ...system, ...said].join("\n\n") + "\n";
  }

  json() {
    return JSON.stringify({ model: this.about.model, messages: Conversation.forApi(this.path(), this.about.system) }, null, 2) + "\n";
  }
}
