"use strict";
// The tab of sounds: transcripts with times, and classes, of a file or of what the microphone records.

// A recording by the microphone, with a level meter and its seconds; `done(file)` gets it.
class Recorder {
  constructor(done) {
    this.done = done;
    this.button = element("button", { type: "button", onclick: () => (this.media ? this.media.stop() : this.start()) }, "Record");
    this.meter = element("meter", { min: 0, max: 1, high: 0.9, "aria-label": "Loudness" });
    this.seconds = element("output", { className: "number" }, "0 s");
    this.live = element("span", { className: "row live", hidden: true }, this.meter, this.seconds);
    this.view = element("div", { className: "row" }, this.button, this.live);
  }

  async start() {
    page.fail(null);
    try {
      if (!navigator.mediaDevices || !window.MediaRecorder) throw new DOMException("", "NotSupportedError");
      this.button.disabled = true;
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true }), chunks = [];
      const media = new MediaRecorder(stream);
      media.addEventListener("dataavailable", (event) => chunks.push(event.data));
      media.addEventListener("stop", () => this.end(new Blob(chunks, { type: media.mimeType })));
      media.start(1000);
      this.media = media;
      this.button.textContent = "Stop recording";
      this.live.hidden = false;
      this.watch(stream);
    } catch (error) {
      this.media?.stream.getTracks().forEach((track) => track.stop());
      page.fail(new ServerError(Recorder.problems[error.name] ?? `the microphone cannot be used (${error.message || error.name}); choose a file instead`, 0));
    } finally {
      this.button.disabled = false;
    }
  }

  watch(stream) {
    const started = performance.now(), context = new AudioContext(), analyser = context.createAnalyser();
    const samples = new Float32Array(analyser.fftSize);
    context.createMediaStreamSource(stream).connect(analyser);
    const timer = setInterval(() => {
      if (!this.media) {
        clearInterval(timer);
        context.close();
        return;
      }
      analyser.getFloatTimeDomainData(samples);
      this.meter.value = Math.min(1, 4 * Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length));
      this.seconds.textContent = `${Math.floor((performance.now() - started) / 1000)} s`;
    }, 100);
  }

  end(blob) {
    this.media.stream.getTracks().forEach((track) => track.stop());
    this.media = null;
    this.button.textContent = "Record again";
    this.live.hidden = true;
    if (!blob.size) page.fail(new ServerError("the recording is empty; record for a second or longer", 0));
    else this.done(new File([blob], `recording.${blob.type.includes("mp4") ? "mp4" : "webm"}`, { type: blob.type }));
  }
}
Recorder.problems = {
  NotAllowedError: "the microphone is blocked; allow it next to the address of this page, or choose a file instead",
  NotFoundError: "there is no microphone; connect one, or choose a file instead",
  NotReadableError: "another program uses the microphone; close it, or choose a file instead",
  NotSupportedError: "this browser lets pages record only on this computer or over https; choose a file instead",
};

page.addTab({
  id: "sounds",
  title: "Sounds",
  serves: (model) => model.reads.includes("sounds") && (model.verbs.includes("transcribe") || model.verbs.includes("classify")),

  show(panel) {
    this.intro = element("p");
    this.place = element("div");
    this.recorder = new Recorder((file) => this.input.take([file], true));
    this.player = element("audio", { controls: true, preload: "metadata", onerror: () => { this.silent.hidden = false; }, onloadedmetadata: () => this.findLength() });
    this.silent = element("p", { className: "soft", hidden: true }, "This browser cannot play the file, but the model may still read it.");
    this.chosen = element("p", { className: "soft" });
    this.language = keepDraft(element("select"), "sounds:language");
    this.translate = keepDraft(element("input", { type: "checkbox" }), "sounds:translate", false);
    this.middle = keepDraft(element("input", { type: "checkbox" }), "sounds:middle", true);
    this.languageField = element("div", { className: "row" }, labelled("Language that is spoken", this.language), labelled("Translate into English", this.translate));
    this.middleField = labelled("Use only the middle of a longer sound", this.middle, "Otherwise a sound that is longer than the model's window is an error.");
    this.results = element("div", { "aria-live": "polite" });
    this.choice = modelChoice("sounds", this.serves, () => this.refresh());
    this.command = commandView(() => this.commandLines());
    const sound = element("div", {}, this.chosen, this.player, this.silent);
    this.form = workForm([this.choice.field, this.intro, this.place, this.recorder.view, sound, this.languageField, this.middleField], (signal) => this.work(signal));
    this.form.addEventListener("input", () => this.command.update());
    panel.append(element("h2", {}, "Sounds"), this.form, this.results, this.command);
    this.refresh();
  },

  get transcribes() { return Boolean(this.choice.model?.verbs.includes("transcribe")); },

  refresh() {
    if (!this.form) return;
    this.choice.refresh();
    const { model } = this.choice;
    if (!model) return;
    this.form.querySelector("button.main").textContent = this.transcribes ? "Transcribe" : "Classify";
    this.intro.textContent = `${this.transcribes ? "The model writes down what is said, with times." : "The model sorts the sound into one of the classes that it has learned."}`;
    if (this.results.dataset.model !== model.id) this.results.replaceChildren();
    this.results.dataset.model = model.id;
    this.middleField.hidden = this.transcribes;
    this.languageField.hidden = !this.transcribes || !model.languages.length;
    const names = new Intl.DisplayNames("en", { type: "language", fallback: "code" }), before = this.language.value || drafts.get("sounds:language", "");
    const name = (code) => { try { return names.of(code); } catch { return code; } };
    this.language.replaceChildren(new Option("found by the model", ""), ...model.languages.map((code) => new Option(name(code), code)));
    this.language.value = model.languages.includes(before) ? before : "";
    const limit = this.transcribes ? server.formFileBytes : server.fileBytes;
    if (this.limit !== limit) {
      this.limit = limit;
      this.input = fileInput({ label: "Sound or video file", accept: "audio/*,video/*", limit, changed: ([file]) => file && this.take(file) });
      this.place.replaceChildren(this.input.zone);
    }
    if (!this.file) this.take(this.drawTones(), true);
    this.chosen.textContent = !this.isExample ? "" : this.transcribes
      ? "Example: three tones, made by this page. Nobody speaks in it, so its text means nothing. Of a real recording you get a line for each sentence, to play, and subtitles to save. Choose a file or record your own."
      : "Example: three tones, made by this page. The class that the model finds for it means little. Choose a file, or record a sound, of a kind that the model has learned.";
    this.command.update();
  },

  take(file, isExample = false) {
    if (/^(image|text)\//.test(file.type)) return page.fail(new ServerError(`${shortName(file.name)} is not a sound; choose files such as .wav, .mp3, .m4a, .webm or .mp4`, 0));
    URL.revokeObjectURL(this.player.src);
    [this.file, this.isExample, this.silent.hidden] = [file, isExample, true];
    this.player.src = URL.createObjectURL(file);
    if (!isExample) this.chosen.textContent = "";
    this.player.setAttribute("aria-label", isExample ? "The example" : shortName(file.name));
    this.results.replaceChildren();
    this.command.update();
    return undefined;
  },

  // A recording does not state its length; browsers find it when they seek its end.
  findLength() {
    if (this.player.duration !== Infinity) return;
    this.player.addEventListener("durationchange", () => { this.player.currentTime = 0; }, { once: true });
    this.player.currentTime = 1e9;
  },

  // A second of three tones as a .wav file of 16-bit samples.
  drawTones(rate = 16000) {
    const data = new DataView(new ArrayBuffer(44 + 2 * rate)), text = (offset, word) => [...word].forEach((c, index) => data.setUint8(offset + index, c.charCodeAt(0)));
    for (const [offset, word] of [[0, "RIFF"], [8, "WAVEfmt "], [36, "data"]]) text(offset, word);
    for (const [offset, value] of [[4, 36 + 2 * rate], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * rate]]) data.setUint32(offset, value, true);
    for (const [offset, value] of [[20, 1], [22, 1], [32, 2], [34, 16]]) data.setUint16(offset, value, true);
    for (let n = 0; n < rate; n++) {
      const part = (3 * n) / rate, within = part % 1, pitch = [440, 554, 659][Math.floor(part)];
      data.setInt16(44 + 2 * n, 9000 * Math.sin(Math.PI * within) * Math.sin((2 * Math.PI * pitch * n) / rate), true);
    }
    return new File([data], "example.wav", { type: "audio/wav" });
  },

  async work(signal) {
    const listens = element("p", { className: "soft" }, "The model listens …");
    this.results.replaceChildren(listens);
    try {
      const parts = await (this.transcribes ? this.transcribe(signal) : this.classify(signal));
      if (listens.isConnected) this.results.replaceChildren(...parts); // else another sound or model was chosen
    } catch (error) {
      this.results.replaceChildren();
      if (error instanceof ServerError) error.message = error.message.replace(/^(item 1|file|blob)\b/, shortName(this.file.name));
      throw error;
    }
  },

  async classify(signal) {
    const url = await dataUrl(new Blob([this.file], { type: "audio/any" }));
    const { result, thresholds } = await server.json("/v1/classify", { body: { model: this.choice.model.id, items: url, truncate: this.middle.checked }, signal });
    const labels = likeliest(result);
    if (labels.length === 1 && labels[0][0] === "value") return [element("p", {}, `Value: ${formatNumber(labels[0][1])}`)];
    const chosen = thresholds && labels.filter(([label, share]) => share >= thresholds[label]).map(([label]) => label).join(", ");
    return [thresholds ? element("p", {}, `Labels: ${chosen || "none"}.`) : "", bars(labels.slice(0, 10))];
  },

  async transcribe(signal) {
    const form = new FormData();
    form.append("file", this.file, this.file.name.slice(-80));
    form.append("model", this.choice.model.id);
    form.append("response_format", "verbose_json");
    for (const granularity of ["word", "segment"]) form.append("timestamp_granularities[]", granularity);
    const hasLanguages = !this.languageField.hidden;
    if (hasLanguages && this.language.value) form.append("language", this.language.value);
    const path = hasLanguages && this.translate.checked ? "/v1/audio/translations" : "/v1/audio/transcriptions";
    return this.transcriptView(await server.json(path, { form, signal }));
  },

  transcriptView(transcript) {
    if (!transcript.segments.length) return [element("p", {}, "The model heard no speech in this sound.")];
    const spans = [], lines = this.sentences(transcript).map(({ start, text, words }) => {
      const parts = words.map((word) => {
        const span = element("span", { title: `${word.start.toFixed(2)} to ${word.end.toFixed(2)} s` }, word.text);
        spans.push([word, span]);
        return span;
      });
      const play = () => { this.player.currentTime = start; this.player.play().catch(() => { this.silent.hidden = false; }); };
      return element("li", {}, element("button", { type: "button", className: "plain segment", onclick: play, "aria-label": `Play from ${this.clock(start)}: ${text.trim()}` },
        element("span", { className: "number soft" }, this.clock(start)), element("span", {}, ...(parts.length ? parts : [text]))));
    });
    this.player.ontimeupdate = () => {
      for (const [word, span] of spans) span.classList.toggle("now", !this.player.paused && word.start <= this.player.currentTime && this.player.currentTime < word.end);
    };
    const rows = (transcript.words ?? []).map((word) => [word.word, word.start.toFixed(2), word.end.toFixed(2), percent(word.probability)]);
    return [element("h3", {}, "What was said"), element("p", { className: "soft" }, "Select a line to play the sound from there."), element("ol", { className: "segments" }, ...lines),
      this.saveButtons(transcript), element("details", {}, element("summary", {}, "Every word with its time"), table(["word", "from (s)", "to (s)", "certainty"], rows, "Words with times"))];
  },

  // The lines of a transcript: its segments, each divided into sentences if its words have times.
  sentences(transcript) {
    const words = [...transcript.words ?? []];
    return transcript.segments.flatMap((segment, index) => {
      const isLast = index === transcript.segments.length - 1, sentences = [[]];
      while (words.length && (isLast || words[0].start < segment.end)) {
        const word = words.shift();
        sentences.at(-1).push(word);
        if (/[.!?…。！？]["'”’»)\]]*$/.test(word.word) && !/^(Mrs?|Ms|Dr|Prof|St|[A-Z])\.$/.test(word.word)) sentences.push([]);
      }
      const spoken = sentences.filter((sentence) => sentence.length);
      if (spoken.length < 2) return [{ start: segment.start, text: segment.text, words: spoken[0] ?? [] }];
      return spoken.map((sentence) => ({ start: sentence[0].start, text: sentence.map((word) => word.text).join(""), words: sentence }));
    });
  },

  // Seconds as hours (if there are digits after the point, as subtitles need them), minutes and seconds.
  clock(seconds, digits = 0, point = ".") {
    const [whole, rest] = seconds.toFixed(digits || 1).split("."), pad = (number) => String(number).padStart(2, "0");
    const minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
    if (digits) return `${pad(hours)}:${pad(minutes % 60)}:${pad(whole % 60)}${point}${rest}`;
    return `${hours ? `${hours}:${pad(minutes % 60)}` : minutes}:${pad(whole % 60)}.${rest}`;
  },

  saveButtons(transcript) {
    const name = this.file.name.replace(/\.\w+$/, "").slice(0, 80), lines = (cues) => `${cues.join("\n")}\n`;
    const times = (segment, point) => `${this.clock(segment.start, 3, point)} --> ${this.clock(segment.end, 3, point)}\n${segment.text.trim().replaceAll("-->", "->")}\n`;
    const texts = {
      txt: () => lines(transcript.segments.map((segment) => segment.text.trim())),
      srt: () => lines(transcript.segments.map((segment, index) => `${index + 1}\n${times(segment, ",")}`)),
      vtt: () => lines(["WEBVTT\n", ...transcript.segments.map((segment) => times(segment, "."))]),
      json: () => `${JSON.stringify(transcript, null, 2)}\n`,
    };
    return element("div", { className: "row" }, copyButton(texts.txt), ...Object.entries(texts).map(([kind, text]) =>
      element("button", { type: "button", onclick: () => saveFile(`${name}.${kind}`, text()) }, `Save as .${kind}`)));
  },

  commandLines() {
    const name = this.isExample ? "talk.wav" : this.file.name, model = this.choice.model;
    if (!this.transcribes) return modelCommand(model, "classify", `${shellWord(name)}${this.middle.checked ? " --truncate" : ""}`, `print(model.classify(${pythonString(name)}${this.middle.checked ? ", truncate=True" : ""}))`);
    const has = !this.languageField.hidden, language = has && this.language.value, translate = has && this.translate.checked;
    return modelCommand(model, "transcribe", `${shellWord(name)}${language ? ` --language ${language}` : ""}${translate ? " --task translate" : ""}`,
      `for segment in model.transcribe(${pythonString(name)}${language ? `, ${pythonString(language)}` : ""}${translate ? ', task="translate"' : ""}, words=True).segments:\n    print(segment.start, segment.text)`);
  },
});
