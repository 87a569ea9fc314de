"use strict";
// Requests to the server that this page comes from.

class ServerError extends Error {
  constructor(message, status, code, param) {
    super(message);
    this.status = status; // 0: there was no answer
    this.code = code;
    this.param = param; // the field at fault
  }
}

const LIST_SECONDS = 3; // between two looks at the list of models

const server = {
  key: sessionStorage.getItem("key") ?? "",
  models: [],
  limits: { body_bytes: 0, form_bytes: 0 }, // of a request
  preparing: null, // since how many seconds the engine is being compiled; null: not now

  // Bytes of a file that fit into a JSON body, where base64 makes it a third larger, and into a form.
  get fileBytes() { return Math.floor(0.75 * (this.limits.body_bytes - 8192)); },
  get formFileBytes() { return this.limits.form_bytes - 8192; },

  // Send a request; ServerError for an error status, or if the server does not answer. `body` is sent as JSON, `form` as it is.
  async request(path, { method, body, form, signal, headers = {} } = {}) {
    if (this.key) headers = { ...headers, Authorization: `Bearer ${this.key}` };
    if (body !== undefined) headers = { ...headers, "Content-Type": "application/json" };
    const content = body === undefined ? form : JSON.stringify(body);
    const asked = body?.model ?? form?.get?.("model"), isListed = !asked || this.models.some((model) => model.id === asked);
    let answer;
    try {
      answer = await fetch(path, { method: method ?? (content === undefined ? "GET" : "POST"), headers, body: content, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("the server does not respond; check that it is running, and try again", 0);
    }
    if (answer.ok && !isListed) this.loadModels().catch(() => {}); // a model that was gone is there again
    if (answer.ok) return answer;
    const details = await answer.json().catch(() => null);
    if (answer.status === 401) page.askForKey(details?.error ?? {});
    if (details?.error?.code === "model_not_found" && isListed) this.loadModels().catch(() => {}); // the server came back with other models
    throw new ServerError(details?.error?.message ?? `the server returned HTTP status ${answer.status}`, answer.status, details?.error?.code, details?.error?.param);
  },

  async json(path, options) {
    return (await this.request(path, options)).json();
  },

  // The events of a streamed answer: each is a line "data: ..." and an empty line.
  async *events(path, body, signal) {
    const answer = await this.request(path, { body, signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("the server went away in the middle of its answer; what has arrived is kept", 0);
      }
      if (chunk.done) throw new ServerError("the server ended its answer early; what has arrived is kept", 0);
      const events = (buffer + chunk.value).split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]") return;
        const part = JSON.parse(event.slice("data: ".length));
        if (part.error) throw new ServerError(part.error.message, part.error.status ?? 500, part.error.code);
        yield part;
      }
    }
  },

  // Read the list of models again, and tell the page about it: always, or only if it has changed.
  async loadModels(always = true) {
    const { data, limits, preparing } = await this.json("/v1/models"), isSame = JSON.stringify(data) === JSON.stringify(this.models);
    this.models = data;
    this.limits = limits;
    this.preparing = preparing;
    page.showPreparing(preparing);
    if (always || !isSame) page.modelsChanged();
  },

  // Models that are new, have changed or are gone are noticed within seconds, while somebody sees the page.
  async watchModels() {
    const isLetIn = this.limits.body_bytes > 0 && document.getElementById("access").hidden, isRead = page.current?.id === "models"; // by this tab itself
    if (isLetIn && !isRead && !document.hidden) await this.loadModels(false).catch(() => {});
    setTimeout(() => this.watchModels(), 1000 * LIST_SECONDS);
  },

  // Open a report in a window of its own; POST to the path returns its address, which opens once.
  async openReport(path) {
    try {
      window.open((await this.json(path, { method: "POST" })).path, "_blank", "noopener");
    } catch (error) {
      page.fail(error);
    }
  },
};
