"use strict";
// A game of chess against a model. The game is kept in this browser tab: a start position, and the moves since then.

const chessStrengths = {
  gentle: ["Gentle: often not its best move", { nodes: 0, temperature: 1 }],
  quick: ["Quick: plays its first idea", { nodes: 0, temperature: 0 }],
  careful: ["Careful: looks at 100 positions", { nodes: 100, temperature: 0 }],
  thorough: ["Thorough: looks at 800, slower", { nodes: 800, temperature: 0 }],
};
const chessEnds = {
  checkmate: "checkmate", stalemate: "stalemate: there is no legal move", "insufficient material": "too few pieces are left to win",
  "fifty moves": "fifty moves without a capture or a pawn's move", "threefold repetition": "the position occurred three times",
};

// What an expected score from 0 to 1 means for a side.
const chessWords = (score) => score > 0.9 ? "it is winning" : score > 0.65 ? "it is better" : score > 0.55 ? "it is slightly better"
  : score >= 0.45 ? "the game is about even" : score >= 0.35 ? "it is slightly worse" : score >= 0.1 ? "it is worse" : "it is losing";

// Shares that add up to 1 as whole percentages that add up to 100: those that lose most by rounding are rounded up.
function wholePercentages(shares) {
  const whole = shares.map((share) => Math.floor(100 * share)), lost = shares.map((share, index) => 100 * share - whole[index]);
  for (let missing = 100 - whole.reduce((sum, value) => sum + value, 0); missing > 0; missing--) {
    const most = lost.indexOf(Math.max(...lost));
    whole[most] += 1;
    lost[most] = -1;
  }
  return whole;
}

// The legal move, as UCI, that somebody typed as e4, Nf3, O-O or e2e4; undefined if there is none.
function typedMove(text, legal) {
  const plain = (move) => move.replace(/[+#!?=\s]/g, "").replaceAll("0", "O");
  const typed = plain(text), moves = Object.entries(legal);
  return moves.find(([uci, san]) => plain(san) === typed || uci === typed.toLowerCase())?.[0]
    ?? moves.find(([, san]) => plain(san).toLowerCase() === typed.toLowerCase())?.[0];
}

class ChessView {
  constructor() {
    this.name = ""; // of the model
    this.game = { position: "", moves: [], side: "white", flipped: false, thought: null, ...drafts.get("chess") };
    this.state = null; // of the server: headway.ChessGame
    this.board = new ChessBoard((move) => this.play(move));
    this.status = element("p", { className: "status", "aria-live": "polite" });
    this.moves = element("ol", { className: "moves", tabIndex: 0, "aria-label": "Moves of the game" });
    this.thought = element("div", { "aria-live": "polite" });
    this.element = element("div", { className: "chess" }, this.board.element, element("div", {}, ...this.controls()));
  }

  controls() {
    const button = (label, action) => element("button", { type: "button", onclick: action }, label);
    this.typed = keepDraft(element("input", { size: 10, autocomplete: "off", spellcheck: false }), "chess-move");
    this.strength = keepDraft(element("select", { onchange: () => this.command.update() },
      ...Object.entries(chessStrengths).map(([name, [text]]) => new Option(text, name))), "chess-strength", "careful");
    this.side = element("select", { onchange: () => this.restart(this.game.position) }, new Option("White", "white"), new Option("Black", "black"));
    this.side.value = this.game.side;
    this.hintButton = button("Hint", () => this.hint());
    this.backButton = button("Take back", () => this.takeBack());
    this.fen = keepDraft(element("input", { autocomplete: "off", spellcheck: false }), "chess-fen", "6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1");
    this.command = commandView(() => this.commands());
    return [
      this.status,
      element("form", { onsubmit: (event) => { event.preventDefault(); this.playTyped(); } }, element("div", { className: "row" },
        labelled("Or type a move, such as e4, Nf3 or e2e4", this.typed, "N knight, B bishop, R rook, Q queen, K king; a pawn has no letter."), element("button", {}, "Play move"))),
      element("div", { className: "row" }, this.hintButton, this.backButton, button("Flip board", () => this.flip()), button("New game", () => this.restart(""))),
      element("div", { className: "row" }, labelled("You play (a change starts a new game)", this.side), labelled("Strength of the model", this.strength)),
      this.thought,
      element("h3", {}, "Moves"), this.moves,
      element("div", { className: "row" }, button("Save as PGN", () => saveFile("game.pgn", this.pgn(), "application/x-chess-pgn")), copyButton(() => this.state?.position ?? "", "Copy FEN")),
      element("details", {}, element("summary", {}, "Start from another position"),
        element("form", { onsubmit: (event) => { event.preventDefault(); this.setUp(); } },
          labelled("Position in FEN, the usual line of text for a position", this.fen), element("button", {}, "Start from it"))),
      this.command,
    ];
  }

  // A request about the game; a new one ends the one before.
  ask(body) {
    this.controller?.abort();
    this.controller = new AbortController();
    return server.json("/v1/chess/move", { body, signal: this.controller.signal });
  }

  get thinking() {
    return { ...chessStrengths[this.strength.value]?.[1], model: this.name, position: this.game.position, moves: this.game.moves };
  }

  // The game is the same with another model; without one it waits.
  modelChanged(name) {
    if (this.name !== name || this.isWaiting) {
      this.name = name;
      this.advance();
    }
    this.command.update();
  }

  // Show the game, and let the model move if it is its turn.
  async advance() {
    page.fail(null);
    this.isWaiting = false;
    try {
      const { position, moves } = this.game;
      this.state = (await this.ask({ position, moves, play: false })).game;
      this.show();
      if (this.state.end || this.state.turn === this.game.side) return;
      const answer = await this.ask(this.thinking);
      const { uci, outcome, candidates } = answer.move;
      this.game = { ...this.game, moves: [...moves, uci], thought: { outcome, candidates } };
      this.state = answer.game;
      this.show();
    } catch (error) {
      if (error.name === "AbortError") return; // a newer request replaces this one
      this.status.textContent = "The game waits for the server.";
      this.isWaiting = true; // to go on when the models or the key change
      page.fail(error, error.status === 400 ? undefined : () => this.advance());
      const isStored = !this.state && (this.game.position || this.game.moves.length);
      if (error.status === 400 && isStored) this.restart(""); // the stored game cannot be read any more
    }
  }

  show(hint = null) {
    const { game, state } = this, isMine = state.turn === game.side && !state.end;
    if (!drafts.set("chess", game)) page.fail(new ServerError("the browser's storage is full, so a reload would lose this game; save it as PGN", 0));
    this.board.show({ position: state.position, legal: state.legal, last: game.moves.at(-1), hint, flipped: game.flipped !== (game.side === "black"), locked: !isMine });
    this.hintButton.disabled = !isMine;
    this.backButton.disabled = game.moves.length === 0;
    const last = state.moves.length ? `${state.turn === game.side ? "The model" : "You"} played ${state.moves.at(-1)}. ` : "";
    this.status.textContent = last + this.situation(isMine);
    this.showMoves();
    this.showThought();
    this.command.update();
  }

  situation(isMine) {
    const { result, end, check } = this.state;
    if (!end) return isMine ? `Your move.${check ? " You are in check." : ""}` : "The model is thinking.";
    const winner = result === "1/2-1/2" ? "A draw" : (result === "1-0") === (this.game.side === "white") ? "You win" : "The model wins";
    return `${winner} (${result}): ${chessEnds[end] ?? end}.`;
  }

  // Pairs of moves with their number, as in a book.
  numbered() {
    const [, turn, , , , first] = (this.game.position || "- w - - 0 1").split(" "), rows = [];
    const number = Number(first) || 1, moves = turn === "b" ? ["...", ...this.state.moves] : this.state.moves;
    for (let index = 0; index < moves.length; index += 2) rows.push([number + index / 2, ...moves.slice(index, index + 2)]);
    return rows;
  }

  showMoves() {
    this.moves.replaceChildren(...this.numbered().map(([number, ...moves]) => element("li", { value: number }, moves.join(" "))));
    this.moves.scrollTop = this.moves.scrollHeight;
  }

  showThought() {
    const { thought } = this.game;
    if (!thought) return this.thought.replaceChildren();
    const [win, draw] = thought.outcome ?? [], [yours, even, lost] = thought.outcome ? wholePercentages([...thought.outcome].reverse()) : []; // the outcome is the model's
    const view = thought.outcome && `The model thinks that ${chessWords(win + draw / 2)}. For you: win ${yours} %, draw ${even} %, loss ${lost} %.`;
    this.thought.replaceChildren(element("h3", {}, "What the model thought"), view ? element("p", {}, view) : "",
      element("p", { className: "soft" }, "How likely it was to play each move:"), bars(thought.candidates.map(({ san, probability }) => [san, probability])));
  }

  play(move) {
    this.game = { ...this.game, moves: [...this.game.moves, move] };
    this.typed.value = "";
    drafts.set("chess-move", "");
    this.advance();
  }

  playTyped() {
    const text = this.typed.value.trim(), legal = Object.values(this.state?.legal ?? {}), move = typedMove(text, this.state?.legal ?? {});
    const problem = this.state?.end ? "the game is over; start a new one, or take back a move"
      : this.state?.turn !== this.game.side ? "it is the model's turn; wait for its move"
      : !text ? `type a move first, such as ${legal[0]}`
      : !move && `"${text.slice(0, 20)}" is not a legal move here; there ${legal.length === 1 ? "is 1 legal move" : `are ${legal.length} legal moves`}: ${legal.slice(0, 5).join(", ")}${legal.length > 5 ? ", ..." : ""}`;
    if (problem) page.fail(Object.assign(new ServerError(problem, 400), { field: this.typed }));
    else this.play(move);
    this.typed.focus();
  }

  async hint() {
    page.fail(null);
    this.hintButton.disabled = true;
    try {
      const { move } = await this.ask({ ...this.thinking, temperature: 0 });
      this.show(move.uci);
      this.status.textContent += ` The model would play ${move.san}.`;
    } catch (error) {
      this.hintButton.disabled = false;
      page.fail(error, error.status === 400 ? undefined : () => this.hint());
    }
  }

  // Take back the reader's last move, and the model's answer to it.
  takeBack() {
    const { moves, side } = this.game, isMine = this.state?.turn === side;
    this.game = { ...this.game, moves: moves.slice(0, -1 - Number(isMine)), thought: null };
    this.advance();
  }

  flip() {
    this.game.flipped = !this.game.flipped;
    if (this.state) this.show();
  }

  restart(position) {
    this.game = { position, moves: [], side: this.side.value, flipped: false, thought: null };
    this.advance();
  }

  async setUp() {
    page.fail(null);
    const position = this.fen.value.trim();
    try {
      const { game } = await this.ask({ position, play: false });
      this.side.value = game.turn;
      this.restart(position);
    } catch (error) {
      page.fail(error, error.status === 400 ? undefined : () => this.setUp());
    }
  }

  pgn() {
    const name = this.name.replace(/["\\]/g, ""), result = this.state?.result ?? "*";
    const players = this.game.side === "white" ? ["You", name] : [name, "You"];
    const tags = { Event: "A game against a model of headway", Date: new Date().toISOString().slice(0, 10).replaceAll("-", "."), White: players[0], Black: players[1], Result: result };
    if (this.game.position) Object.assign(tags, { SetUp: "1", FEN: this.game.position });
    const moves = this.state ? this.numbered().map(([number, ...pair]) => pair[0] === "..." ? `${number}... ${pair[1]}` : `${number}. ${pair.join(" ")}`) : [];
    const lines = [...moves, result].join(" ").match(/.{1,79}(\s|$)/g).map((line) => line.trim());
    return `${Object.entries(tags).map(([tag, value]) => `[${tag} "${value}"]`).join("\n")}\n\n${lines.join("\n")}\n`;
  }

  commands() {
    const { model, position, moves, nodes, temperature } = this.thinking;
    const before = this.state?.turn === this.game.side && moves.length ? moves.slice(0, -1) : moves; // as the model was asked
    const words = ["headway chess move", shellWord(model), ...before, ...(position ? ["--position", shellWord(position)] : [])];
    const values = [...(position ? [`position=${pythonString(position)}`] : []), `moves=[${before.map(pythonString).join(", ")}]`, `nodes=${nodes}`, `temperature=${temperature}`];
    return {
      shell: [...words, `--nodes ${nodes} --temperature ${temperature} --server`, location.origin].join(" "),
      python: `import headway as hw\nmodel = hw.connect(${pythonString(location.origin)}, model=${pythonString(model)})\nmove = model.move(${values.join(", ")})\nprint(move.san, move.outcome)`,
    };
  }
}
