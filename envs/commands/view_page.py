"""The page that `python -m envs view` fills: markup, style and script in one text, nothing fetched from elsewhere."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>rollouts: __TITLE__</title>
<style>
:root { --line: #d5dae2; --dim: #5d6775; --bad: #b3261e; --good: #1b7340; --accent: #2a62ae; }
* { box-sizing: border-box; }
body { margin: 0; font: 14px/1.45 system-ui, sans-serif; color: #1c2430; display: flex; flex-direction: column;
  height: 100vh; }
header { padding: 8px 12px; border-bottom: 1px solid var(--line); display: flex; gap: 10px; flex-wrap: wrap;
  align-items: center; }
header label { color: var(--dim); } select, input { font: inherit; padding: 2px 4px; }
input[type=number] { width: 5em; } #search { width: 16em; }
main { display: flex; flex: 1; min-height: 0; }
#list { width: 340px; overflow-y: auto; border-right: 1px solid var(--line); }
#list button { display: block; width: 100%; text-align: left; border: 0; border-bottom: 1px solid var(--line);
  background: none; padding: 6px 12px; font: inherit; cursor: pointer; }
#list button.chosen { background: #e8f0fb; } #list small { color: var(--dim); display: block; }
#detail { flex: 1; overflow-y: auto; padding: 12px 20px; }
.message { border-left: 3px solid var(--line); padding: 2px 10px; margin: 10px 0; }
.message.assistant { border-color: var(--good); } .message.user { border-color: var(--accent); }
.message.tool { border-color: #b07d00; } .message.system { border-color: #8a4fa3; }
.role { color: var(--dim); font-size: 12px; } pre { margin: 2px 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, monospace; }
.reasoning { color: var(--dim); font-style: italic; } .bad { color: var(--bad); } .reward { font-weight: 600; }
.tokens span { border-radius: 2px; } .tokens .forced { outline: 1px dashed var(--dim); color: var(--dim); }
summary { cursor: pointer; color: var(--dim); } .legend { color: var(--dim); font-size: 12px; }
</style>
<header>
<b>__TITLE__</b>
<label>environment <select id="env"></select></label>
<label>outcome <select id="outcome"></select></label>
<label>reward <input id="low" type="number" step="any" placeholder="from">
<input id="high" type="number" step="any" placeholder="to"></label>
<input id="search" type="search" placeholder="search in messages">
<span id="count"></span>
</header>
<main><nav id="list"></nav><section id="detail"></section></main>
<script>
const rollouts = __ROLLOUTS__;
const $ = id => document.getElementById(id);
const filters = ["env", "outcome", "low", "high", "search"];
let chosen = 0;

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function options(id, values) {
  $(id).append(element("option", "all"));
  for (const value of [...new Set(values)].sort()) $(id).append(element("option", value));
}
function textOf(rollout) {
  const texts = rollout.messages.map(m => [m.reasoning, m.content, JSON.stringify(m.tool_calls || [])]);
  return texts.flat().join("\\n");
}
function fits(rollout) {
  const number = id => $(id).value === "" ? null : Number($(id).value);
  const low = number("low"), high = number("high");
  if ($("env").value !== "all" && rollout.env !== $("env").value) return false;
  if ($("outcome").value !== "all" && rollout.outcome !== $("outcome").value) return false;
  if ((low !== null || high !== null) && rollout.reward === null) return false;
  if (low !== null && rollout.reward < low) return false;
  if (high !== null && rollout.reward > high) return false;
  const sought = $("search").value.toLowerCase();
  return !sought || textOf(rollout).toLowerCase().includes(sought);
}
function shownReward(rollout) { return rollout.reward === null ? "none" : rollout.reward.toFixed(3); }

function list() {
  const found = rollouts.map((rollout, place) => [rollout, place]).filter(([rollout]) => fits(rollout));
  $("count").textContent = `${found.length} of ${rollouts.length}`;
  $("list").replaceChildren(...found.map(([rollout, place]) => {
    const entry = element("button", `${rollout.env}  ${shownReward(rollout)}`, place === chosen ? "chosen" : "");
    const step = rollout.step === null ? "" : `step ${rollout.step}  `;
    entry.append(element("small", `${step}seed ${rollout.seed}  ${rollout.outcome}`));
    entry.onclick = () => { chosen = place; list(); };
    return entry;
  }));
  if (!found.some(([, place]) => place === chosen)) chosen = found.length ? found[0][1] : -1;
  detail();
}
function tokens(turn) {
  const box = element("pre", undefined, "tokens");
  for (const [text, logprob, forced] of turn) {
    const token = element("span", text, forced ? "forced" : "");
    token.title = forced ? "forced by the budget, not trained" : `logprob ${logprob}`;
    if (!forced) token.style.background = `rgba(179, 38, 30, ${Math.min(0.6, -logprob / 8)})`;
    box.append(token);
  }
  return box;
}
function message(said, turn) {
  const box = element("div", undefined, `message ${said.role}`);
  box.append(element("div", `${said.role} ${said.name || ""}`, "role"));
  if (said.reasoning) box.append(element("pre", said.reasoning, "reasoning"));
  if (said.content) box.append(element("pre", said.content));
  for (const call of said.tool_calls || [])
    box.append(element("pre", `-> ${call.name}(${JSON.stringify(call.arguments)})`));
  if (turn && turn.length) {
    const more = element("details");
    more.open = true;
    more.append(element("summary", `${turn.length} sampled tokens`), tokens(turn));
    box.append(more);
  }
  return box;
}
function detail() {
  const rollout = rollouts[chosen], place = $("detail");
  place.replaceChildren();
  if (!rollout) { place.append(element("p", "No rollout matches.")); return; }
  place.append(element("h3", `${rollout.env}, seed ${rollout.seed} ${rollout.split}`));
  const parts = Object.entries(rollout.parts).map(([name, value]) => `${name} ${value.toFixed(3)}`).join("   ");
  place.append(element("div", `reward ${shownReward(rollout)}   ${parts}`, "reward"));
  const counts = rollout.reward !== null;
  place.append(element("div", `outcome ${rollout.outcome}   budget ${rollout.budget}`, counts ? "" : "bad"));
  if (rollout.error) place.append(element("pre", rollout.error, "bad"));
  let turn = 0;
  for (const said of rollout.messages)
    place.append(message(said, said.role === "assistant" ? rollout.turns[turn++] : null));
  if (rollout.turns.length)
    place.append(element("p", "The redder a token, the less likely it was; dashed: forced, not trained.", "legend"));
}
options("env", rollouts.map(rollout => rollout.env));
options("outcome", rollouts.map(rollout => rollout.outcome));
const asked = new URLSearchParams(location.hash.slice(1));
for (const id of filters) if (asked.has(id)) $(id).value = asked.get(id);
for (const id of filters) $(id).oninput = list;
list();
</script>
"""
