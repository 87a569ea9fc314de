"use strict";
// An episode that an agent, a trajectory model or a robot policy plays on the server, as a film.

// A chart of numbers over steps from 1, as a picture with the same numbers in a table.
function stepChart(title, values) {
  const width = 400, height = 150, left = 46, bottom = 22, low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1;
  const x = (index) => left + (width - left - 8) * (values.length > 1 ? index / (values.length - 1) : 0.5), y = (value) => 8 + (height - bottom - 8) * (high - value) / span;
  const label = (text, at, anchor) => svg("text", { ...at, "text-anchor": anchor }, text);
  const summary = `${title}: ${integers.format(values.length)} steps, from ${formatNumber(Math.min(...values))} to ${formatNumber(Math.max(...values))}`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "rewards", role: "img", "aria-label": summary }, svg("title", {}, summary),
    svg("line", { x1: left, x2: width - 8, y1: y(0), y2: y(0), class: "axis" }),
    svg("polyline", { points: values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" "), class: "curve" }),
    ...[...new Set([low, high])].map((value) => label(formatNumber(value), { x: left - 6, y: y(value) + 4 }, "end")),
    label("step 1", { x: left, y: height - 4 }, "start"), label(`step ${integers.format(values.length)}`, { x: width - 8, y: height - 4 }, "end"));
  return element("figure", {}, element("figcaption", {}, title), picture,
    element("details", {}, element("summary", {}, "The same numbers as a table"), table(["step", title], values.map((value, index) => [index + 1, value]), title)));
}

function episodeView(chosen) {
  const environment = element("select", { onchange: () => command.update() }), seed = keepDraft(element("input", { type: "number", min: 0, step: 1, required: true }), "episode-seed", "2000000");
  const target = keepDraft(element("input", { type: "number", step: "any" }), "episode-target");
  const targetField = labelled("Sum of rewards to aim for (empty: as in training)", target);
  const result = element("div", { "aria-live": "polite" });
  let film = null, shown = null;

  const request = () => ({ model: chosen()?.id ?? "", environment: environment.value, seed: Number(seed.value), ...(targetField.hidden || target.value === "" ? {} : { target_return: Number(target.value) }) });
  const command = commandView(() => {
    const body = request(), aims = body.target_return === undefined ? "" : ` --target-return ${body.target_return}`;
    const values = `env=${pythonString(body.environment)}, episodes=1, seed=${body.seed}${aims && `, target_return=${body.target_return}`}, render="episode.mp4"`;
    return {
      shell: `headway rollout ${shellWord(`runs/${body.model}`)} --env ${shellWord(body.environment)} --episodes 1 --seed ${body.seed}${aims} --render episode.mp4`,
      python: `import headway as hw\nmodel = hw.load(${pythonString(`runs/${body.model}`)})\nprint(model.rollout(${values}))`,
    };
  });
  for (const field of [seed, target]) field.addEventListener("input", () => command.update());

  const form = workForm([
    element("div", { className: "row" }, labelled("Environment", environment), labelled("Seed", seed), targetField),
    element("p", { className: "soft" }, "The server plays one episode and films it, in at most 5 minutes. The seed is a number that decides how the episode starts: the same seed gives the same episode."),
  ], async (signal) => {
    result.replaceChildren(element("p", {}, "The model is playing. The film follows when the episode is over."));
    try {
      show(await server.json("/v1/episodes", { body: request(), signal }));
    } catch (error) {
      result.replaceChildren();
      throw error;
    }
  }, "Play an episode");

  function show({ environment: name, rewards, episode_return: total, success, film: url }) {
    const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
    if (film) URL.revokeObjectURL(film);
    film = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
    const steps = `${integers.format(rewards.length)} step${rewards.length === 1 ? "" : "s"}`;
    const ending = success === null ? "" : success ? " It solved its task." : " It did not solve its task.";
    result.replaceChildren(element("h3", {}, `An episode of ${name}`),
      element("video", { src: film, controls: true, autoplay: true, muted: true, loop: false, "aria-label": `Film of the episode: ${steps}` }),
      element("p", {}, `The episode took ${steps}. Its return, the sum of its rewards, is ${formatNumber(total)}.${ending}`),
      element("p", {}, element("button", { type: "button", onclick: () => saveFile("episode.mp4", new Blob([bytes], { type: "video/mp4" })) }, "Save the film")),
      stepChart("Reward of each step", rewards));
  }

  async function modelChanged() {
    const name = chosen().id;
    if (shown === name) return;
    try {
      const { environments, target_return: aims } = await server.json(`/v1/environments/${encodeURIComponent(name)}`);
      environment.replaceChildren(...environments.map((entry) => new Option(entry, entry)));
      targetField.hidden = aims === null;
      target.placeholder = aims === null ? "" : formatNumber(aims);
      shown = name;
      result.replaceChildren(...(environments.length ? [] : [element("p", {}, "This model does not name its environment, so it cannot be played here.")]));
      command.update();
    } catch (error) {
      page.fail(error, modelChanged);
    }
  }

  return { element: element("div", {}, form, result, command), modelChanged };
}
