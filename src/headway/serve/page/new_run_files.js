"use strict";
// Files for a training: those of a dropped folder, their upload with progress, and a .zip of an example.

const IGNORED_FILES = /(^|\/)(\.[^/]*|Thumbs\.db|desktop\.ini|__MACOSX)(\/|$)/i;
const totalBytes = (files) => files.reduce((sum, file) => sum + file.size, 0);
const filePath = (file) => file.path || file.webkitRelativePath || file.name;

// The files of a drop, with those in its folders.
async function droppedFiles(transfer) {
  const files = [];
  const walk = async (entry, folder) => {
    const path = folder + entry.name;
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      file.path = path;
      files.push(file);
    } else {
      const reader = entry.createReader();
      for (;;) { // a reader returns at most 100 entries at once
        const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!entries.length) break;
        for (const inner of entries) await walk(inner, `${path}/`);
      }
    }
  };
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean); // before the first wait
  if (!entries.length) return [...transfer.files];
  for (const entry of entries) await walk(entry, "");
  return files;
}

// Divide files into those to upload and those to leave out: hidden and empty ones, and those of other kinds.
function sortFiles(files, kinds) {
  const usable = [], others = [];
  for (const file of files) {
    const path = filePath(file).toLowerCase();
    if (IGNORED_FILES.test(path) || !file.size) others.push(file);
    else (kinds.some((kind) => path.endsWith(kind)) ? usable : others).push(file);
  }
  return { usable, others };
}

const PHOTO_SIDE = 1024; // pixels of the longest side, more than any model here reads, also after cropping
const PHOTO_BYTES = 8e6; // larger photos are shrunk before they are sent

// Photos of more than `limit` bytes as smaller JPEG files with the same names, and the other files as they are; `shrunk` is
// their number. What the browser cannot decode stays.
async function shrinkPhotos(files, limit, signal, progress) {
  const large = files.filter((file) => file.size > limit), smaller = new Map();
  for (const [index, file] of large.entries()) {
    signal.throwIfAborted();
    progress(index / large.length, `Large photos are made smaller: ${integers.format(index + 1)} of ${integers.format(large.length)}.`);
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (!bitmap) continue;
    const scale = Math.min(1, PHOTO_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(scale * bitmap.width)), Math.max(1, Math.round(scale * bitmap.height))), pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "#fff"; // a JPEG file has no transparency
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    const made = new File([await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 })], file.name, { type: "image/jpeg", lastModified: file.lastModified });
    made.path = filePath(file);
    if (made.size < file.size) smaller.set(file, made);
  }
  return { files: files.map((file) => smaller.get(file) ?? file), shrunk: smaller.size };
}

// Text files that are not UTF-8, read as older programs for Windows write them (code page 1252), as UTF-8.
async function convertTexts(files) {
  return Promise.all(files.map(async (file) => {
    if (!/\.(txt|csv|tsv|jsonl)$/i.test(file.name)) return file;
    const content = new Uint8Array(await file.arrayBuffer());
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(content);
      return file;
    } catch {
      const made = new File([new TextDecoder("windows-1252").decode(content)], file.name, { type: file.type, lastModified: file.lastModified });
      made.path = filePath(file);
      return made;
    }
  }));
}

// Send one file; `progress(bytes)` follows it. fetch() cannot report the progress of an upload.
function sendFile(upload, file, signal, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(), path = filePath(file).split("/").map(encodeURIComponent).join("/");
    const abort = () => request.abort();
    request.open("PUT", `/v1/uploads/${upload}/files/${path}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    if (server.key) request.setRequestHeader("Authorization", `Bearer ${server.key}`);
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onload = () => {
      if (request.status < 300) return resolve();
      let details = null;
      try { details = JSON.parse(request.responseText).error; } catch { /* not from this server */ }
      reject(new ServerError(details?.message ?? `the server returned HTTP status ${request.status}`, request.status, details?.code));
    };
    request.onerror = () => reject(new ServerError("the connection was lost; what has arrived is kept", 0));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onloadend = () => signal.removeEventListener("abort", abort);
    signal.addEventListener("abort", abort);
    request.send(file);
  });
}

// Send files that have not arrived yet, a few at a time. `progress(files, bytes)` counts those that have.
async function sendFiles(upload, files, arrived, signal, progress) {
  const waiting = files.filter((file) => arrived.get(filePath(file)) !== file.size), running = new Map();
  let count = files.length - waiting.length, bytes = totalBytes(files) - totalBytes(waiting);
  const report = () => progress(count, bytes + [...running.values()].reduce((sum, sent) => sum + sent, 0));
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      running.set(file, 0);
      report();
      try {
        await sendFile(upload, file, signal, (sent) => { running.set(file, sent); report(); });
      } catch (error) {
        waiting.length = 0; // the others end, too
        throw error;
      } finally {
        running.delete(file);
      }
      bytes += file.size;
      count += 1;
      report();
    }
  };
  await Promise.all([work(), work(), work(), work()]);
}

// A number that changes if other files are chosen, or if one was edited.
function choiceSum(files) {
  const lines = files.map((file) => `${filePath(file)}\n${file.size}\n${file.lastModified}\n`);
  return checkSum(new TextEncoder().encode(lines.sort().join("")));
}

// The check sum of a .zip file (CRC-32).
function checkSum(bytes) {
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (0xedb88320 & -(sum & 1));
  }
  return ~sum >>> 0;
}

// Files with their folders as one .zip, without compression.
async function zipFiles(files) {
  const parts = [], directory = [], encoder = new TextEncoder();
  let position = 0;
  for (const file of files) {
    const name = encoder.encode(filePath(file)), content = new Uint8Array(await file.arrayBuffer());
    const header = (signature, size, extra) => { // both headers hold the same fields, the second one after two more bytes
      const view = new DataView(new ArrayBuffer(size));
      view.setUint32(0, signature, true);
      [20, 0x800, 0, 0, 0x5821].forEach((value, index) => view.setUint16(4 + extra + 2 * index, value, true));
      [checkSum(content), content.length, content.length].forEach((value, index) => view.setUint32(14 + extra + 4 * index, value, true));
      view.setUint16(26 + extra, name.length, true);
      return view;
    };
    const entry = header(0x02014b50, 46, 2);
    entry.setUint16(4, 20, true);
    entry.setUint32(42, position, true);
    directory.push(entry, name);
    parts.push(header(0x04034b50, 30, 0), name, content);
    position += 30 + name.length + content.length;
  }
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, directory.reduce((sum, part) => sum + part.byteLength, 0), true);
  end.setUint32(16, position, true);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
