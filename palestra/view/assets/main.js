// The page, from top to bottom.

const data = JSON.parse(document.getElementById("data").textContent);
const section = (name) => document.getElementById(name);

document.title = `${data.headline.env_id}, ${data.headline.run}: palestra report`;

function drawConfiguration(mount, data) {
  const tables = [];
  if (data.summary.length) tables.push(table(data.summary, "summary.json"));
  if (data.config.length) tables.push(table(data.config, "config.toml"));
  mount.append(
    tables.length
      ? el("div", { class: "tables" }, ...tables)
      : el("p", { class: "about" }, "The run has written neither yet."),
  );
}

// Tasks of their own: if one fails, the others still draw.
for (const draw of [
  () => drawHeadline(section("headline"), data.headline, data.notices),
  () => drawTraining(section("training"), data.groups),
  () => drawTranscripts(section("transcripts"), data.transcripts),
  () => drawConfiguration(section("configuration"), data),
]) {
  queueMicrotask(draw);
}
