"use strict";
// What people train on: how the files must look, the recipe that reads them, and example files that are made here.

// Random numbers from 0 to 1, the same each time, so that an example is the same each time.
function seededRandom(seed) {
  return () => {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    return seed / 2147483648;
  };
}

// A file of an example; `path` is its name with its folders.
function exampleFile(path, content, type = "text/plain") {
  const file = new File([content], path.split("/").pop(), { type });
  file.path = path;
  return file;
}

function exampleLines(path, count, line) {
  const random = seededRandom(7), pick = (words) => words[Math.floor(random() * words.length)];
  return [exampleFile(path, Array.from({ length: count }, (_, number) => line(pick, number, random)).join(""))];
}

// Sounds at 8,000 samples per second as a .wav file; `wave(seconds)` is from -1 to 1.
function exampleSound(path, seconds, wave) {
  const rate = 8000, count = Math.round(seconds * rate), view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (position, letters) => [...letters].forEach((letter, index) => view.setUint8(position + index, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt "); view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); view.setUint16(22, 1, true); view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true); text(36, "data"); view.setUint32(40, 2 * count, true);
  for (let index = 0; index < count; index++) view.setInt16(44 + 2 * index, 32000 * wave(index / rate), true);
  return exampleFile(path, view, "audio/wav");
}

function exampleImages() {
  const random = seededRandom(3), canvas = element("canvas", { width: 32, height: 32 }), pen = canvas.getContext("2d"), files = [];
  const draw = {
    circle: (size) => { pen.beginPath(); pen.arc(0, 0, size, 0, 2 * Math.PI); pen.fill(); },
    square: (size) => pen.fillRect(-size, -size, 2 * size, 2 * size),
    cross: (size) => { pen.fillRect(-size, -2, 2 * size, 4); pen.fillRect(-2, -size, 4, 2 * size); },
  };
  for (const [name, shape] of Object.entries(draw)) {
    for (let number = 1; number <= 24; number++) {
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.fillStyle = `hsl(${360 * random()} 40% 92%)`;
      pen.fillRect(0, 0, 32, 32);
      pen.translate(11 + 10 * random(), 11 + 10 * random());
      pen.fillStyle = `hsl(${360 * random()} 70% 40%)`;
      shape(6 + 4 * random());
      const letters = atob(canvas.toDataURL().split(",")[1]); // toBlob() waits until the browser is idle
      files.push(exampleFile(`shapes/${name}/${number}.png`, Uint8Array.from(letters, (letter) => letter.charCodeAt(0)), "image/png"));
    }
  }
  return files;
}

function exampleSounds() {
  const random = seededRandom(5), files = [], tone = (hertz) => (seconds) => 0.6 * Math.sin(2 * Math.PI * hertz * seconds) * Math.exp(-3 * seconds);
  for (let number = 1; number <= 16; number++) {
    files.push(exampleSound(`tones/low/${number}.wav`, 0.5, tone(150 + 150 * random())), exampleSound(`tones/high/${number}.wav`, 0.5, tone(900 + 900 * random())),
      exampleSound(`tones/noise/${number}.wav`, 0.5, (seconds) => (random() - 0.5) * Math.exp(-3 * seconds)));
  }
  return files;
}

function exampleTranscripts() {
  const random = seededRandom(9), hertz = { low: 300, middle: 700, high: 1500 }, words = Object.keys(hertz), files = [], rows = ["path\ttext"];
  for (let number = 1; number <= 220; number++) { // four minutes of speech are the least for a model from scratch
    const said = Array.from({ length: 2 + Math.floor(4 * random()) }, () => words[Math.floor(3 * random())]);
    const wave = (seconds) => seconds % 0.4 < 0.3 ? 0.5 * Math.sin(2 * Math.PI * hertz[said[Math.floor(seconds / 0.4)]] * seconds) : 0;
    files.push(exampleSound(`spoken/${number}.wav`, 0.4 * said.length - 0.01, wave));
    rows.push(`${number}.wav\t${said.join(" ")}`);
  }
  return [...files, exampleFile("spoken/transcripts.tsv", rows.join("\n") + "\n")];
}

function exampleChat(pick) {
  const [first, second] = [pick([1, 2, 3, 4, 5, 6]), pick([1, 2, 3, 4, 5, 6])];
  const [question, answer] = pick([[`What is ${first} plus ${second}?`, `${first} plus ${second} is ${first + second}.`], ["Hello!", "Hello! What can I add for you?"], ["Thank you", "You are welcome."]]);
  return `${JSON.stringify({ messages: [{ role: "user", content: question }, { role: "assistant", content: answer }] })}\n`;
}

const TABLE_KINDS = [".csv", ".tsv", ".jsonl", ".xlsx"];
const SOUND_KINDS = [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".mov", ".mkv", ".webm", ".wma", ".aiff"];
const TEN_WORDS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], ONE_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

// `look` is how the files must look, `kinds` their extensions, and `example` makes some.
const trainingKinds = [
  { id: "texts", recipe: "text", title: "Texts", result: "The model writes more of the same kind.",
    kinds: [".txt", ".jsonl", ".parquet", ".gz", ".xz", ".zst", ".zip"], look: "stories.txt\n\nThe old fox went to the sea and sang.\nThe shy cat went to the wood and slept.",
    rule: "One or more text files (.txt): books, letters, notes, songs. The more, the better: 100 kB (50 pages) is a start.",
    example: () => exampleLines("stories.txt", 400, (pick) => `The ${pick(["red", "old", "shy", "big"])} ${pick(["fox", "cat", "dog", "hen"])} went to the ${pick(["sea", "wood", "hill", "town"])} and ${pick(["sang", "slept", "ran", "ate"])}.\n`) },
  { id: "pairs", recipe: "translation", title: "Pairs of texts", result: "The model answers the first with the second: a translation, or an answer to a question.",
    kinds: [".tsv", ".csv", ".jsonl", ".txt"], look: "pairs.csv\n\nsource,target\nGood morning,Guten Morgen\nThank you,Danke",
    rule: "A table with the columns source and target, one pair in each line; or two text files, in which the lines with the same number belong together.",
    example: () => [exampleFile("numbers.tsv", "source\ttarget\n" + TEN_WORDS.flatMap((ten, tens) => ONE_WORDS.map((one, ones) => `${ten} ${one}\t${10 * tens + ones + 21}\n`)).join(""))] },
  { id: "labelled", recipe: "classification", title: "Labelled texts", result: "The model gives a new text one of your labels.",
    kinds: TABLE_KINDS, look: "messages.csv\n\ntext,label\nWhere is my parcel?,question\nThe box was broken,complaint",
    rule: "A table with the columns text and label. At least two different labels, each with 10 texts or more. Put quotes around a text that contains a comma.",
    example: () => exampleLines("messages.csv", 121, (pick, number) => number === 0 ? "text,label\n" : [
      () => `${pick(["Where is", "When do I get", "How much is", "Who sends"])} ${pick(["my parcel", "the invoice", "the blue lamp", "the book"])}?,question\n`,
      () => `${pick(["The box", "The lamp", "My book", "The cup"])} ${pick(["was broken", "came too late", "does not work", "is the wrong one"])},complaint\n`,
      () => `${pick(["Thank you", "Many thanks", "Great", "Wonderful"])} ${pick(["for the help", "for the lamp", "and see you soon", "to all of you"])},thanks\n`][number % 3]()) },
  { id: "images", recipe: "vision", title: "Images in folders", result: "The model finds the folder that a new image belongs to.", folders: true,
    kinds: [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"], look: "pets/\n  cat/  tom.jpg, 2.jpg, ...\n  dog/  rex.jpg, 7.jpg, ...",
    rule: "A folder with one folder for each kind of thing, named after it. At least two of them, each with 10 images or more. Drop or choose the outer folder.",
    example: exampleImages },
  { id: "sounds", recipe: "audio", title: "Sounds in folders", result: "The model finds the folder that a new sound belongs to.", folders: true,
    kinds: SOUND_KINDS, look: "birds/\n  owl/    1.wav, 2.wav, ...\n  robin/  a.mp3, b.mp3, ...",
    rule: "A folder with one folder for each kind of sound, named after it. At least two of them, each with 10 short sounds or more. Drop or choose the outer folder.",
    example: exampleSounds },
  { id: "series", recipe: "forecast", title: "A time series", result: "The model continues it: numbers over time, with a range.",
    kinds: TABLE_KINDS, look: "visitors.csv\n\ndate,visitors\n2024-01-01,120\n2024-01-02,134",
    rule: "A table with a column of dates at equal steps (each day, each month) and one or more columns of numbers; 100 lines or more.",
    example: () => exampleLines("visitors.csv", 731, (pick, number, random) => number === 0 ? "date,visitors\n"
      : `${new Date(Date.UTC(2023, 0, number)).toISOString().slice(0, 10)},${Math.round(120 + number / 10 + 40 * Math.sin(2 * Math.PI * number / 7) + 10 * random())}\n`) },
  { id: "conversations", recipe: "instruct", title: "Conversations", result: "The model answers like the assistant in them.",
    kinds: [".jsonl", ".zip", ".gz"], look: 'chats.jsonl, one conversation in each line\n\n{"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello!"}]}',
    rule: "A .jsonl file, which many chat programs export: each line is one conversation, with the messages of user and assistant.",
    example: () => exampleLines("chats.jsonl", 200, exampleChat) },
  { id: "transcripts", recipe: "transcription", title: "Transcribed sounds", result: "The model writes down what is said in a new recording.", folders: true,
    kinds: [...SOUND_KINDS, ...TABLE_KINDS], look: "spoken/\n  1.wav, 2.wav, ...\n  transcripts.tsv\n\npath     text\n1.wav    good morning\n2.wav    see you",
    rule: "Training needs many recordings with their texts: a folder with recordings of up to 30 seconds and a table with the columns path and text (the name of a recording, and what is said in it). To have a single recording written down, use the tab Sounds with a speech model.",
    example: exampleTranscripts },
];
