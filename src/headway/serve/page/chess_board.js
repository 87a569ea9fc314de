"use strict";
// A chessboard for mouse, touch and keyboard. It knows no rules: the server sends the legal moves.

// Shapes in a square of 45 units: what is filled, and what is only a line.
const chessBase = "M13 33h19l2.5 6h-24z";
const chessShapes = {
  pawn: { fill: ["M22.5 19c4 0 6 2.5 6 5 0 2-1 3.5-2.5 4.5 4 2 6.5 6 6.5 10.5h-20c0-4.5 2.5-8.5 6.5-10.5-1.5-1-2.5-2.5-2.5-4.5 0-2.5 2-5 6-5z", "M17.5 14a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"] },
  rook: { fill: ["M11 9h5v4h4V9h5v4h4V9h5v9l-4 3v10l4.5 4v4h-24v-4l4.5-4V21l-4-3z"], line: "M15 21h15M15 31h15" },
  knight: { fill: ["M33 39H13c0-8 7-10 8-16-3 2-6 2-8 5l-4 1-3-4 8-13-1-5 6 3c9 0 14 8 14 17 0 5 0 9 0 12z"], line: "M16 16.5l1.5-1M9.5 25l1-1" },
  bishop: { fill: ["M10.5 39c0-3.5 4.5-5.5 12-5.5s12 2 12 5.5z", "M22.5 9c5.5 4 8 8.5 8 13 0 3-1.5 5.5-4 7.5l1 4h-10l1-4c-2.5-2-4-4.5-4-7.5 0-4.5 2.5-9 8-13z", "M20 7a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0z"], line: "M22.5 16v9M18.5 20.5h8" },
  queen: { fill: [chessBase, "M8 13l6 17h17l6-17-8 9-1.5-13-5 12-5-12-1.5 13z", "M6 11.5a2 2 0 1 0 4 0a2 2 0 1 0-4 0zM15.5 7.5a2 2 0 1 0 4 0a2 2 0 1 0-4 0zM25.5 7.5a2 2 0 1 0 4 0a2 2 0 1 0-4 0zM35 11.5a2 2 0 1 0 4 0a2 2 0 1 0-4 0z"] },
  king: { fill: [chessBase, "M22.5 13c4 0 5 3 4.5 6 4-4 10-2 10 3 0 4-4 6-5 9H13c-1-3-5-5-5-9 0-5 6-7 10-3-.5-3 .5-6 4.5-6z", "M21.5 4.5h2V7H26v2h-2.5v4.5h-2V9H19V7h2.5z"] },
};
const chessNames = { p: "pawn", n: "knight", b: "bishop", r: "rook", q: "queen", k: "king" };

function chessPiece(letter) {
  const { fill, line } = chessShapes[chessNames[letter.toLowerCase()]];
  return svg("svg", { viewBox: "0 0 45 45", class: `piece ${letter === letter.toLowerCase() ? "black" : "white"}`, "aria-hidden": "true" },
    ...fill.map((d) => svg("path", { d })), ...(line ? [svg("path", { d: line, class: "line" })] : []));
}

// The piece on each square of a FEN: {e1: "K", ...}.
function chessPieces(position) {
  const pieces = {};
  position.split(" ")[0].split("/").forEach((row, index) => {
    let file = 0;
    for (const letter of row) {
      if (/\d/.test(letter)) file += Number(letter);
      else pieces["abcdefgh"[file++] + (8 - index)] = letter;
    }
  });
  return pieces;
}

// The board as an element; `played(uci)` is called with the reader's legal move.
class ChessBoard {
  constructor(played) {
    Object.assign(this, { played, position: "", legal: {}, pieces: {}, selected: null, focus: 60 });
    this.cells = [...Array(64).keys()].map((index) => element("button", { type: "button", role: "gridcell", tabIndex: -1, onclick: () => this.choose(index) }));
    const rows = [...Array(8).keys()].map((row) => element("div", { role: "row" }, ...this.cells.slice(8 * row, 8 * row + 8)));
    const listeners = { onkeydown: (event) => this.onKey(event), onpointerdown: (event) => this.onPress(event) };
    this.grid = element("div", { className: "board", role: "grid", "aria-label": "Chessboard. Arrow keys move between squares, Enter chooses.", ...listeners }, ...rows);
    this.promotion = element("div", { className: "row", role: "group", "aria-label": "Promote the pawn to", hidden: true });
    this.element = element("div", {}, this.grid, this.promotion);
  }

  // Show {position, legal, last, hint, flipped, locked}: the FEN, the legal moves by UCI, and the last and the suggested move.
  show(next) {
    if (Boolean(next.flipped) !== Boolean(this.flipped)) this.focus = 63 - this.focus;
    Object.assign(this, { legal: {}, last: null, hint: null, flipped: false, locked: false }, next, { selected: null });
    this.pieces = chessPieces(this.position);
    this.promotion.hidden = true;
    this.draw();
  }

  square(index) {
    const at = this.flipped ? 63 - index : index;
    return "abcdefgh"[at % 8] + (8 - Math.floor(at / 8));
  }

  moves(from) {
    return this.locked || !from ? [] : Object.keys(this.legal).filter((move) => move.startsWith(from));
  }

  draw() {
    const targets = this.moves(this.selected).map((move) => move.slice(2, 4));
    const ends = (move) => move ? [move.slice(0, 2), move.slice(2, 4)] : [];
    this.cells.forEach((cell, index) => {
      const name = this.square(index), letter = this.pieces[name], row = Math.floor(index / 8), column = index % 8;
      const marks = { dark: (row + column) % 2 === 1, last: ends(this.last).includes(name), hint: ends(this.hint).includes(name), target: targets.includes(name) };
      const label = [name, letter ? `${letter === letter.toLowerCase() ? "black" : "white"} ${chessNames[letter.toLowerCase()]}` : "empty", marks.target && "you can move here"];
      cell.className = Object.keys(marks).filter((mark) => marks[mark]).join(" ");
      cell.setAttribute("aria-selected", String(name === this.selected));
      cell.setAttribute("aria-label", label.filter(Boolean).join(", "));
      cell.tabIndex = index === this.focus ? 0 : -1;
      const edges = [column === 0 && ["edge rank", name[1]], row === 7 && ["edge", name[0]]].filter(Boolean);
      cell.replaceChildren(...(letter ? [chessPiece(letter)] : []), ...edges.map(([className, text]) => element("span", { className, "aria-hidden": "true" }, text)));
    });
  }

  choose(index) {
    if (this.dragged) return;
    this.focus = index;
    this.move(this.square(index));
    this.draw();
  }

  // Select the piece on a square, or move the selected one there.
  move(name) {
    this.promotion.hidden = true;
    const moves = this.moves(this.selected).filter((move) => move.slice(2, 4) === name);
    this.selected = moves.length || name === this.selected || !this.moves(name).length ? null : name;
    if (moves.length === 1) this.played(moves[0]);
    if (moves.length > 1) this.promote(moves[0].slice(0, 4));
  }

  promote(move) {
    const choices = [..."qrbn"].map((letter) => element("button", { type: "button", onclick: () => this.played(move + letter) }, chessNames[letter]));
    this.promotion.replaceChildren(element("span", {}, "Promote to"), ...choices);
    this.promotion.hidden = false;
    choices[0].focus();
  }

  onKey(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") { this.selected = null; this.draw(); }
    if (!step) return;
    event.preventDefault();
    const column = this.focus % 8 + step[0], row = Math.floor(this.focus / 8) + step[1];
    if (column < 0 || column > 7 || row < 0 || row > 7) return;
    this.cells[this.focus].tabIndex = -1;
    this.focus = 8 * row + column;
    this.cells[this.focus].tabIndex = 0;
    this.cells[this.focus].focus();
  }

  // A mouse can also drag a piece; a finger scrolls the page, and chooses squares one after the other.
  onPress(event) {
    const start = this.cells.indexOf(event.target.closest("button")), from = this.square(start);
    if (event.pointerType !== "mouse" || event.button !== 0 || start < 0 || !this.moves(from).length) return;
    event.preventDefault(); // no ghost of the picture
    this.cells[start].focus({ preventScroll: true });
    const drag = (moved) => {
      const x = moved.clientX - event.clientX, y = moved.clientY - event.clientY;
      if (!this.dragged && Math.hypot(x, y) < 6) return;
      if (!this.dragged) {
        this.dragged = true;
        this.selected = from;
        this.draw();
      }
      const piece = this.cells[start].querySelector(".piece");
      if (piece) piece.style.transform = `translate(${x}px, ${y}px)`;
    };
    const drop = (ended) => {
      for (const [name, listener] of [["pointermove", drag], ["pointerup", drop], ["pointercancel", drop]]) document.removeEventListener(name, listener);
      if (!this.dragged) return;
      setTimeout(() => { this.dragged = false; }); // after the click that follows
      const over = this.cells.findIndex((cell) => {
        const box = cell.getBoundingClientRect();
        return ended.clientX >= box.left && ended.clientX < box.right && ended.clientY >= box.top && ended.clientY < box.bottom;
      });
      if (over >= 0 && over !== start) this.move(this.square(over));
      this.draw();
    };
    for (const [name, listener] of [["pointermove", drag], ["pointerup", drop], ["pointercancel", drop]]) document.addEventListener(name, listener);
  }
}
