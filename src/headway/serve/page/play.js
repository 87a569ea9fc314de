"use strict";
// The tab for models that play: chess against the reader, or an episode of their environment.

const playsChess = (model) => model.verbs.includes("move");
const playsEpisodes = (model) => model.verbs.includes("act");

page.addTab({
  id: "play",
  title: "Play",
  serves: (model) => playsChess(model) || playsEpisodes(model),
  show(panel) {
    const chosen = () => this.choice?.model;
    this.chess = new ChessView();
    this.episode = episodeView(chosen);
    this.choice = modelChoice("play", this.serves, () => this.update(), (one, other) => playsChess(other) - playsChess(one) || other.parameters - one.parameters); // chess first
    this.heading = element("h2");
    panel.append(this.heading, this.choice.field, this.chess.element, this.episode.element);
    this.update();
  },
  refresh() {
    this.choice.refresh();
    this.update();
  },
  update() {
    const model = this.choice?.model;
    if (!model || this.choice.isGone) return;
    this.heading.textContent = playsChess(model) ? "Play chess against a model" : "Watch a model play an episode";
    this.chess.element.hidden = !playsChess(model);
    this.episode.element.hidden = !playsEpisodes(model);
    if (playsChess(model)) this.chess.modelChanged(model.id);
    else this.episode.modelChanged();
  },
});
