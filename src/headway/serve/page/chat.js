"use strict";
// The tab Write: conversations with models that chat, and text that a model continues.

const canWrite = (model) => model.verbs.includes("generate") && model.reads.includes("texts");
const ALTERNATIVES = 5; // per token

// Settings of sampling in plain words: name, label, properties of the field, explanation.
const SAMPLING = [
  ["temperature", "How daring", { type: "range", min: 0, max: 2, step: 0.1, value: "0.8" }],
  ["max_tokens", "Maximum length", { min: 1, step: 1, value: "300" }, "In tokens. A token is a word or a part of one; empty: until the model ends its text."],
  ["top_k", "Choose among (top-k)", { min: 1, step: 1 }, "Only this many of the most probable tokens; empty: all of them."],
  ["top_p", "Leave out the tail (top-p)", { min: 0, max: 1, step: 0.05 }, "Only the most probable tokens that together have this share, such as 0.9; empty: all."],
  ["min_p", "Leave out the improbable (min-p)", { min: 0, max: 1, step: 0.05 }, "Only tokens with at least this share of the best one's probability, such as 0.1."],
  ["repetition_penalty", "Avoid repetition", { min: 0.1, max: 5, step: 0.1 }, "Above 1, tokens that occurred before become less probable; 1.1 is a little."],
  ["seed", "Seed", { step: 1 }, "The same number gives the same text again; empty: a new text each time."],
];

// A temperature in words: 0 always takes the most probable token, and 1 follows the model's probabilities.
const daringInWords = (temperature) => `${temperature < 0.7 ? "cautious" : temperature > 1.2 ? "bold" : "as the model"}, ${temperature}`;

// The new part of a streamed answer, the same for chats and continuations.
function readPart(part) {
  const choice = part.choices[0], logprobs = choice?.logprobs;
  const tokens = logprobs?.content?.map(({ token, logprob, top_logprobs }) => ({ text: token, logprob, top: top_logprobs.map((top) => [top.token, top.logprob]) }))
    ?? logprobs?.tokens?.map((text, index) => ({ text, logprob: logprobs.token_logprobs[index], top: Object.entries(logprobs.top_logprobs[index] ?? {}) })) ?? [];
  const { content = choice?.text ?? "", reasoning_content: thinking = "" } = choice?.delta ?? {};
  return { text: content, thinking, tokens, reason: choice?.finish_reason, usage: part.usage };
}

// About an answer: why it ended, in a `line`, and its `speed`.
function answerStatistics({ asked, first, last, usage, reason, limit }) {
  const written = usage?.completion_tokens ?? 0, seconds = (last - asked) / 1000;
  const isFull = reason === "length" && !(limit && written >= limit);
  const line = isFull ? "Cut off: the model can read no longer text." : reason === "length" ? `Cut off at the maximum length of ${formatNumber(limit)} tokens.` : "The model ended its text.";
  if (!written || !last) return { line, speed: "" };
  const rate = written > 1 ? `, ${formatNumber(Number(((written - 1) / Math.max((last - first) / 1000, 1e-3)).toPrecision(3)))} tokens/s` : "";
  return { line, speed: `${formatNumber(written)} tokens (words or parts of words) in ${seconds.toFixed(2)} s, the first after ${((first - asked) / 1000).toFixed(2)} s${rate}.` };
}

const NOTHING_MORE = "Continue added nothing: for the model, the text ends here. Let it write on, ask for another answer, or change the text.";
const WRITE_ON = 20; // tokens before the model may end its text, if it has to write on

// A button that acts at its second press; `name` is read aloud instead of a sign.
function twiceButton(label, question, act, className = "", name = label) {
  const show = (text) => { button.textContent = text; button.setAttribute("aria-label", text === label ? name : text); };
  const button = element("button", { type: "button", className, onblur: () => show(label), onclick: () => {
    const isSecond = button.textContent === question;
    show(isSecond ? label : question);
    if (isSecond) act();
  } });
  show(label);
  return button;
}

page.addTab({
  id: "write",
  title: "Write",
  serves: canWrite,

  show(panel) {
    this.views = new Map(); // of messages: {stamp, root, text}
    this.choice = modelChoice("write", canWrite, () => this.modelChanged());
    this.mode = element("select", { onchange: () => { page.fail(null); drafts.set("write:mode", this.mode.value); this.openNew(); } }, new Option("Chat", "chat"), new Option("Continue a text", "completion"));
    this.modeField = labelled("Mode", this.mode);
    this.list = element("ul", { className: "conversations" });
    this.summary = element("summary");
    this.clearAll = twiceButton("Clear all", "Really clear all?", () => this.cleared(Conversation.listed().map(({ id }) => id)));
    this.messages = element("div", { className: "messages", role: "region", "aria-label": "Conversation", tabIndex: 0 });
    this.pointing = element("p", { className: "soft" }, "Point at a word, or tab to the text and use the arrow keys, to see what else could have stood there.");
    this.status = element("p", { className: "unseen", role: "status" });
    this.text = element("textarea", { rows: 3, onkeydown: (event) => this.keyPressed(event) });
    this.textField = labelled("Your message", this.text, "Enter sends it, Shift + Enter starts a new line.");
    this.examples = element("div");
    this.form = workForm([this.textField, this.examples], (signal) => this.work(signal));
    this.command = commandView(() => this.commands());
    panel.append(element("h2", {}, "Write with a model"), element("div", { className: "row" }, this.choice.field, this.modeField),
      element("div", { className: "sidebar" },
        element("details", { open: innerWidth >= 900 }, this.summary, element("button", { type: "button", onclick: () => { page.fail(null); this.openNew(); this.text.focus(); } }, "New"),
          this.list, element("p", { className: "soft" }, "They are stored in this browser only."), this.clearAll),
        element("div", {}, this.messages, this.pointing, this.status, this.form, ...this.settings(), this.command)));
    this.messages.addEventListener("scroll", () => { this.isAtEnd = this.messages.scrollHeight - this.messages.scrollTop - this.messages.clientHeight < 40; });
    window.addEventListener("storage", (event) => this.stored(event));
    window.addEventListener("pagehide", () => this.saveUnfinished());
    this.modelChanged();
    this.open(new Conversation(drafts.get("conversation") ?? undefined));
  },

  // The parts below the form: sampling, the system message, how answers look, and files.
  settings() {
    const [daring, ...fields] = SAMPLING.map(([name, label, properties, more]) => labelled(label, keepDraft(element("input", { type: "number", ...properties }), `write:${name}`, properties.value ?? ""), more));
    this.sampling = Object.fromEntries(SAMPLING.map(([name], index) => [name, [daring, ...fields][index].querySelector("input")]));
    const { temperature } = this.sampling, describe = () => {
      daring.firstChild.textContent = `How daring (temperature): ${temperature.value}`;
      temperature.setAttribute("aria-valuetext", daringInWords(temperature.valueAsNumber));
    };
    temperature.addEventListener("input", describe);
    describe();
    daring.classList.add("daring");
    daring.append(element("div", { className: "soft ends", "aria-hidden": "true" }, ...["cautious", "as the model", "bold"].map((word) => element("span", {}, word))));
    this.form.querySelector("button.main").parentNode.append(daring);
    const reset = () => { page.fail(null); for (const [name, , { value = "" }] of SAMPLING) { this.sampling[name].value = value; drafts.set(`write:${name}`, null); } describe(); };
    this.more = element("details", {}, element("summary", {}, "More settings"), element("div", { className: "settings" }, ...fields),
      element("button", { type: "button", onclick: reset }, "Usual values"));
    this.system = element("textarea", { rows: 2, oninput: () => this.keep(this.conversation.saveAbout({ system: this.system.value })) });
    this.systemField = labelled("System message", this.system, "What the model should know or be in the whole conversation, such as: You answer in one sentence.");
    this.noSystem = element("p", { className: "soft", role: "status" });
    this.systemView = element("details", { ontoggle: () => this.checkSystem() }, element("summary", {}, "System message"), this.systemField, this.noSystem);
    const surprise = element("input", { type: "checkbox", onchange: () => { settings.set("surprise", surprise.checked); colour(); } });
    const colour = () => { this.messages.classList.toggle("surprise", surprise.checked); legend.hidden = !surprise.checked; };
    const legend = element("span", { className: "surprise soft" }, "The model gave the token it wrote: ", ...[["", "50 % or more"], [" rare", "10 to 50 %"], [" rarer", "1 to 10 %"], [" rarest", "less than 1 %"]]
      .flatMap(([kind, share]) => [element("span", { className: `token${kind}` }, share), " "]));
    surprise.checked = settings.get("surprise", false);
    colour();
    const save = (name, type, content) => saveFile(`${this.conversation.title().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation"}.${name}`, content, type);
    const wholeText = () => this.isChat ? this.conversation.markdown() : this.conversation.text();
    this.saveText = element("button", { type: "button", onclick: () => this.isChat ? save("md", "text/markdown;charset=utf-8", wholeText()) : save("txt", undefined, wholeText()) });
    return [element("div", { className: "row" }, element("label", {}, surprise, " Colour tokens by surprise (a token is a word or a part of one)"), legend), this.systemView, this.more,
      element("div", { className: "row" }, copyButton(wholeText, "Copy everything"), this.saveText,
        element("button", { type: "button", onclick: () => save("json", "application/json", this.conversation.json()) }, "Save everything, for programs (.json)"))];
  },

  refresh() {
    this.choice.refresh();
    this.modelChanged();
  },

  get isChat() {
    return this.mode.value === "chat";
  },

  // Another model may be unable to chat, or have other examples.
  modelChanged() {
    const model = this.choice?.model;
    if (!model || !this.command) return;
    const canChat = model.verbs.includes("chat"), before = this.mode.value;
    const wanted = this.conversation?.messages.size ? this.conversation.about.mode : drafts.get("write:mode");
    this.mode.value = canChat ? wanted ?? "chat" : "completion";
    this.modeField.hidden = !canChat;
    if (this.conversation && this.mode.value !== before) this.openNew();
    else if (this.conversation) this.modeChanged();
    this.noSystem.textContent = "";
    this.checkSystem();
  },

  modeChanged() {
    const examples = this.choice.model?.examples.length ? this.choice.model.examples : this.isChat ? ["Tell me a short story about a lighthouse."] : ["Once upon a time there was a"];
    this.textField.firstChild.textContent = this.isChat ? "Your message" : "Text to continue";
    this.textField.lastChild.textContent = this.isChat ? "Enter sends it, Shift + Enter starts a new line." : "The model writes what could come next. Ctrl + Enter sends it.";
    this.systemView.hidden = !this.isChat;
    this.saveText.textContent = `Save the text (${this.isChat ? ".md" : ".txt"})`;
    const draft = `write:${this.conversation.id}`, isNew = !this.conversation.path().length;
    this.text.value = drafts.get(draft) ?? (isNew ? examples[0] : this.isChat ? "" : this.conversation.path()[0].content);
    this.text.oninput = () => drafts.set(draft, this.text.value);
    this.examples.hidden = examples.length < 2 || (this.isChat && !isNew);
    this.examples.replaceChildren(exampleButtons(examples, (example) => { this.text.value = example; this.text.oninput(); }));
    this.command.update();
  },

  // Show a conversation, which decides about the mode if there is something in it.
  open(conversation) {
    this.conversation = this.writing?.conversation.id === conversation.id ? this.writing.conversation : conversation;
    drafts.set("conversation", conversation.id);
    this.views.clear();
    this.editing = null;
    if (conversation.messages.size && this.choice.model?.verbs.includes("chat")) this.mode.value = conversation.about.mode ?? this.mode.value;
    this.system.value = conversation.about.system ?? "";
    this.systemView.open = Boolean(this.system.value);
    this.modeChanged();
    this.render();
    this.messages.scrollTop = this.messages.scrollHeight;
    this.listConversations();
  },

  // The conversation that has no messages yet: what was typed for it, or in one that was cleared, is still there.
  openNew(typed) {
    let conversation = new Conversation(drafts.get("write:new") ?? undefined);
    if (conversation.messages.size) conversation = new Conversation();
    drafts.set("write:new", conversation.id);
    if (typed) drafts.set(`write:${conversation.id}`, typed);
    this.open(conversation);
  },

  listConversations() {
    const stored = Conversation.listed();
    this.summary.textContent = `Conversations (${stored.length})`;
    this.clearAll.hidden = stored.length < 2;
    this.list.replaceChildren(...stored.map(({ id, title }) => element("li", {},
      element("button", { type: "button", className: "plain", "aria-current": id === this.conversation.id ? "true" : undefined, onclick: () => { page.fail(null); this.open(new Conversation(id)); } }, title),
      twiceButton("×", "Clear?", () => this.cleared([id]), "plain", `Clear “${title}”`))));
  },

  cleared(ids) {
    page.fail(null);
    for (const id of ids) Conversation.clear(id);
    if (ids.includes(this.writing?.conversation.id)) this.writing.conversation.isCleared = true;
    if (ids.includes(this.conversation.id)) this.openNew(drafts.get(`write:${this.conversation.id}`));
    else this.listConversations();
  },

  // Report once that the storage is full or turned off.
  keep(isStored) {
    if (isStored || this.conversation.isReported) return;
    this.conversation.isReported = true;
    page.fail(new ServerError("the browser's storage is full or turned off, so this conversation is lost when you close the page; save it as a file, or clear other conversations", 507));
  },

  keyPressed(event) {
    if (event.key !== "Enter" || event.isComposing || !(event.ctrlKey || (this.isChat && !event.shiftKey))) return;
    event.preventDefault();
    this.form.requestSubmit();
  },

  // Whether the template has a system message; the server tells it.
  async checkSystem() {
    const { model } = this.choice, marker = "Answer briefly.";
    if (!this.systemView.open || !this.isChat || !model) return;
    const messages = [{ role: "system", content: marker }, { role: "user", content: "Hello" }];
    const line = await server.json("/apply-template", { body: { model: model.id, messages } }).then(
      ({ prompt }) => prompt.includes(marker) ? "" : "This model's chat template leaves a system message out.",
      (error) => error.status === 400 ? `This model takes no system message: ${error.message}.` : "");
    if (this.choice.model !== model) return;
    this.noSystem.textContent = line;
    this.systemField.hidden = Boolean(line) && !this.system.value;
  },

  // Other browser tabs add messages to the same conversation, or clear it.
  stored(event) {
    const [prefix, id, message] = (event.key ?? "").slice(settings.prefix.length).split("/");
    if (event.key !== null && `${prefix}/` !== CONVERSATIONS) return;
    clearTimeout(this.listing);
    this.listing = setTimeout(() => this.listConversations(), 200);
    if (id !== this.conversation.id || !message) return;
    const mine = this.conversation.messages.get(message);
    const isNeeded = this.writing?.conversation === this.conversation; // for the answer
    if (event.newValue === null && isNeeded) { if (mine) this.conversation.save(mine); } else if (event.newValue === null && !Conversation.listed().some((entry) => entry.id === id)) this.openNew(drafts.get(`write:${id}`));
    else if (event.newValue !== null && !(mine && this.writing?.message === mine)) this.conversation.read(message);
    this.render();
  },

  // The page is left while an answer is written: what has arrived is kept.
  saveUnfinished() {
    if (!this.writing) return;
    const { conversation, message } = this.writing;
    this.writing.wasLeft = true;
    Object.assign(message, { state: "incomplete", line: "Incomplete: the page was left while it was written." });
    conversation.save(message);
  },

  // Ask for an answer that `makeAnswer` returns: empty, or to be continued. One is written at a time.
  start(makeAnswer) {
    if (this.writing) {
      page.fail(new ServerError("an answer is being written; wait for its end, or stop it first", 409));
      return;
    }
    this.next = makeAnswer;
    this.messages.focus({ preventScroll: true });
    this.form.requestSubmit();
  },

  async work(signal) {
    const makeAnswer = this.next ?? (() => this.ask());
    this.next = null; // also if a setting is refused, and before there is an answer
    const wrong = Object.values(this.sampling).find((field) => !field.checkValidity());
    if (wrong) {
      this.more.open = true;
      wrong.focus();
      throw Object.assign(new ServerError(`${wrong.labels[0].textContent}: ${wrong.validationMessage}`, 400), { field: wrong });
    }
    await this.write(makeAnswer(), signal);
  },

  // An empty answer to what is typed.
  ask() {
    const text = this.text.value, { conversation } = this, path = conversation.path();
    if (this.isChat && !text.trim()) throw Object.assign(new ServerError("type a message first", 400), { field: this.text });
    if (!this.isChat && path.length && path[0].content !== text) { // another text is another conversation
      drafts.set(`write:${conversation.id}`, null);
      this.openNew();
      this.text.value = text;
      return this.ask();
    }
    const last = path.at(-1), isUnanswered = last?.role === "assistant" && path.length > 1 && !last.content && !Conversation.isBeingWritten(last); // then this is another version of the question
    const isSame = !this.isChat && path[0]?.content === text, parent = isUnanswered ? path.at(-2).parent : last?.id ?? "";
    const question = isSame ? path[0] : this.question(this.isChat ? parent : "", text);
    if (this.isChat) this.text.value = "";
    this.text.oninput();
    this.examples.hidden ||= this.isChat;
    return conversation.add(question.id, "assistant", "");
  },

  question(parent, text) {
    const message = this.conversation.add(parent, "user", text);
    this.keep(this.conversation.save(message) && this.conversation.saveAbout({ mode: this.mode.value, model: this.choice.model?.id }));
    return message;
  },

  // The request for an answer; one that is incomplete is continued.
  request(message) {
    const before = this.conversation.before(message), number = (name) => Number.isNaN(this.sampling[name].valueAsNumber) ? undefined : this.sampling[name].valueAsNumber;
    const body = { model: this.choice.model?.id, stream: true, stream_options: { include_usage: true }, ...Object.fromEntries(SAMPLING.map(([name]) => [name, number(name)])) };
    if (message.mustWrite) body.min_tokens = Math.min(WRITE_ON, body.max_tokens ?? WRITE_ON);
    if (!this.isChat) return ["/v1/completions", { ...body, max_tokens: body.max_tokens ?? 4096, prompt: before[0].content + message.content, logprobs: ALTERNATIVES }];
    const messages = Conversation.forApi([...before, message], this.conversation.about.system);
    return ["/v1/chat/completions", { ...body, messages, logprobs: true, top_logprobs: ALTERNATIVES, continue_final_message: Boolean(message.content) }];
  },

  async write(message, signal) {
    const { conversation } = this;
    if (!conversation.before(message).length) throw new ServerError("the question of this answer is gone, perhaps cleared in another browser tab; type it again", 400);
    const [path, body] = this.request(message), before = { content: message.content, speed: message.speed }, answer = { asked: performance.now(), kept: 0, limit: body.max_tokens };
    const keep = () => { answer.kept = performance.now(); if (!conversation.isCleared) this.keep(conversation.save(message)); };
    Object.assign(message, { state: "writing", writer: thisTab, model: body.model, temperature: body.temperature, line: "", speed: "", hasEnded: false, mustWrite: undefined });
    this.writing = { conversation, message };
    keep();
    this.render();
    this.listConversations();
    this.messages.scrollTop = this.messages.scrollHeight;
    this.isAtEnd = true;
    this.status.textContent = this.progress(message);
    try {
      for await (const part of server.events(path, body, signal)) {
        this.take(message, readPart(part), answer);
        if (performance.now() - answer.kept > 1000) keep();
      }
      const hasEnded = answer.reason !== "length" && message.content.trim() === before.content.trim() && !(message.thinking && !before.content), { line, speed } = answerStatistics(answer);
      const ended = before.content ? NOTHING_MORE : this.isChat ? "The model answered nothing. Let it write on, or change your message." : "The model took your text for complete. Leave its last sentence open, or let it write on.";
      Object.assign(message, { state: answer.reason === "length" ? "cut" : "done", line: hasEnded ? ended : line, speed: hasEnded ? before.speed : speed, hasEnded });
    } catch (error) {
      if (this.writing.wasLeft) return;
      const isStopped = error.name === "AbortError", failed = message.content ? "Incomplete: the server's answer broke off." : "There is no answer yet.";
      Object.assign(message, { state: isStopped ? "stopped" : "incomplete", line: isStopped ? "Stopped by you." : failed });
      page.fail(error, message.content ? undefined : () => {
        if (this.conversation !== conversation) this.open(conversation);
        this.start(() => message);
      });
    } finally {
      this.writing = null;
      keep();
      this.render();
      this.listConversations(); // an answer is the title where the question is empty
      this.status.textContent = `${message.content.slice(0, 2000)} ${message.line}`;
    }
  },

  // A new part of the answer: it is on the page before anything else is done with it.
  take(message, { text, thinking, tokens, reason, usage }, answer) {
    const view = this.conversation === this.writing.conversation ? this.views.get(message.id) : null;
    if (thinking) {
      message.thinking = (message.thinking ?? "") + thinking;
      view?.thinking.lastChild.append(thinking);
      if (view) view.thinking.hidden = false;
    } else view?.text.add(text, tokens);
    message.content += text;
    if (text || thinking) {
      answer.last = performance.now();
      if (!answer.first) this.render(); // it does not wait any more
      answer.first ??= answer.last;
    }
    answer.reason = reason ?? answer.reason;
    answer.usage = usage ?? answer.usage;
    if (this.isAtEnd) this.scrolling ??= requestAnimationFrame(() => { this.scrolling = null; this.messages.scrollTop = this.messages.scrollHeight; });
  },

  // What an answer that is being written waits for, if it waits.
  progress(message) {
    if (message.content || message.thinking) return "Writing…";
    return server.preparing === null ? "Waiting for the model’s first words…" : "Waiting until this computer is prepared for models that write: see the top of the page. The answer then follows by itself.";
  },

  preparingChanged() {
    if (this.writing) this.render();
  },

  render() {
    const path = this.conversation.path(), shown = path.filter(({ role }) => this.isChat || role === "assistant").map((message) => this.view(message).root);
    this.messages.hidden = !shown.length;
    if (shown.length !== this.messages.children.length || shown.some((root, index) => root !== this.messages.children[index])) this.messages.replaceChildren(...shown);
    this.pointing.hidden = !this.messages.querySelector(".token"); // after a reload there are none
    clearTimeout(this.waiting);
    if (path.some((message) => message.writer !== thisTab && Conversation.isBeingWritten(message))) this.waiting = setTimeout(() => this.render(), 1000 * WRITING_SECONDS);
  },

  // A message on the page. It is made again if something about it has changed, except for its text, which grows.
  view(message) {
    const isMine = message.writer === thisTab, isWritten = Conversation.isBeingWritten(message), before = this.views.get(message.id);
    const all = this.isChat ? this.conversation.versions(message.parent) : [...this.conversation.messages.values()].filter(({ role }) => role === "assistant").sort((a, b) => a.id < b.id ? -1 : 1);
    const stamp = [all.length, all.indexOf(message), message.state, isWritten && isMine && this.progress(message), message.line, this.editing === message.id, isMine || message.content.length].join();
    if (before?.stamp === stamp) return before;
    const text = before && isMine ? before.text : new TokenText(message.content, (content) => this.start(() => this.conversation.add(message.parent, "assistant", content)));
    const thinking = before?.thinking ?? element("details", { className: "thinking", hidden: !message.thinking }, element("summary", {}, "Thinking"), element("div", {}, message.thinking ?? ""));
    const given = this.isChat ? null : element("span", { className: "soft-ink" }, this.conversation.before(message)[0]?.content ?? "");
    const daring = typeof message.temperature === "number" ? ` (${daringInWords(message.temperature)})` : "";
    const name = message.role === "user" ? "You" : `${firstWords(message.model ?? "Model")}${daring}`, line = isWritten ? isMine ? this.progress(message) : "Being written in another browser tab." : message.line;
    const root = element("article", { className: `message ${message.role}`, "aria-label": name, "data-message": message.id, "aria-busy": isWritten ? "true" : undefined },
      element("p", { className: "soft" }, name), thinking, this.editing === message.id ? this.editForm(message) : element("div", { className: "text" }, given, text.root),
      line && element("p", { className: message.state === "incomplete" ? "soft wrong" : "soft" }, line),
      message.speed && !isWritten ? element("details", { className: "soft" }, element("summary", {}, "More"), message.speed) : null, isWritten || this.editing === message.id ? null : this.actions(message, all));
    const view = { stamp, root, text, thinking };
    this.views.set(message.id, view);
    return view;
  },

  actions(message, versions) {
    const button = (label, act) => element("button", { type: "button", className: "plain", onclick: act }, label), index = versions.indexOf(message);
    const again = () => this.start(() => message.content ? this.conversation.add(message.parent, "assistant", "") : message);
    const own = message.role === "user" ? [button("Edit", () => this.edit(message.id))] : [
      message.hasEnded ? button("Write on anyway", () => this.start(() => Object.assign(message, { mustWrite: true }))) : null,
      message.content && !message.hasEnded && (message.state !== "done" || !this.isChat) ? button("Continue", () => this.start(() => message)) : null,
      button(message.content && message.state !== "incomplete" ? "Another answer" : "Try again", again)];
    const turn = (step) => element("button", { type: "button", className: "plain", disabled: !versions[index + step], "aria-label": step < 0 ? "Earlier version" : "Later version", onclick: () => this.choose(versions[index + step], step) }, step < 0 ? "‹" : "›");
    return element("div", { className: "row actions" }, message.content ? copyButton(() => this.isChat ? message.content : this.conversation.before(message)[0].content + message.content) : null, ...own.filter(Boolean),
      ...(versions.length > 1 ? [element("span", { className: "versions soft" }, turn(-1), `${index + 1} of ${versions.length}`, turn(1))] : []));
  },

  choose(message, step) {
    const { conversation } = this, question = conversation.messages.get(message.parent);
    conversation.chosen.set(message.parent, message.id);
    if (!this.isChat && question) conversation.chosen.set(question.parent, question.id);
    this.render();
    const turns = this.messages.querySelectorAll(`[data-message="${message.id}"] .versions button:enabled`);
    turns[step < 0 ? 0 : turns.length - 1]?.focus();
  },

  edit(id) {
    this.editing = id;
    this.render();
    this.messages.querySelector(`form textarea`)?.focus();
  },

  // An edited message is another version of it, and what followed is asked again.
  editForm(message) {
    const draft = `edit:${message.id}`, text = keepDraft(element("textarea", { rows: 3, required: true }), draft, message.content);
    const close = () => { drafts.set(draft, null); this.edit(null); };
    return element("form", { onsubmit: (event) => {
      event.preventDefault();
      this.start(() => {
        const question = this.question(message.parent, text.value);
        close();
        return this.conversation.add(question.id, "assistant", "");
      });
    } }, labelled("Edited message", text), element("div", { className: "row" }, element("button", { className: "main" }, "Send again"), element("button", { type: "button", onclick: close }, "Cancel")));
  },

  // The same as a command and as Python.
  commands() {
    const { model } = this.choice, path = this.conversation.path(), text = this.text.value || path[0]?.content || "Hello";
    const set = SAMPLING.map(([name]) => [name === "max_tokens" ? "max_new_tokens" : name, this.sampling[name].value]).filter(([, value]) => value !== "");
    const options = set.map(([name, value]) => ` --${name.replaceAll("_", "-")} ${value}`).join("");
    if (!this.isChat) return modelCommand(model, "generate", `--prompt ${shellWord(text)}${options}`, `print(model.generate(${[pythonString(text), ...set.map(([name, value]) => `${name}=${value}`)].join(", ")}))`);
    const { system } = this.conversation.about, typed = this.text.value || !path.length ? [{ role: "user", content: text }] : [];
    const asked = typed.length ? path : path.slice(0, path.findLastIndex(({ role }) => role === "user") + 1);
    const messages = Conversation.forApi([...asked, ...typed].map(({ role, content }) => ({ role, content })), system);
    const list = `[\n${messages.map(({ role, content }) => `    {"role": "${role}", "content": ${pythonString(content)}},\n`).join("")}]`;
    const known = set.filter(([name]) => ["max_new_tokens", "temperature", "seed"].includes(name)).map(([name, value]) => `, ${name}=${value}`).join("");
    return modelCommand(model, "chat", `${system ? `--system ${shellWord(system)}` : ""}${options}`.trim(), `print(model.chat(${list}${known}))`);
  },
});
