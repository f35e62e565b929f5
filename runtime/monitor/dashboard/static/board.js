// The run's page.
import Chart from "/assets/chart.js";
import {
  clock,
  duration,
  faultWords,
  fixed,
  markWords,
  name,
  percent,
  plural,
  seconds,
  short,
  whole,
} from "/assets/format.js";
import { aging, Bar, Choice, themed } from "/assets/frame.js";
import Members from "/assets/members.js";
import Round from "/assets/round.js";
import { Past, poll } from "/assets/store.js";

const MOST_NEWS = 14;
const ENDS = { ended: "The log ends here.", over: "The run has taken its last step." };
const AXIS = { steps: "step", tokens: "tokens", time: "time" };

export default {
  components: { Bar, Chart, Choice, Members, Round },
  mixins: [themed, aging],
  data: () => ({ head: null, rows: [], marks: [], validations: [], over: "steps" }),
  template: `
    <div class="page" :class="{ stale }">
      <Bar :title="title" :id="id" :status="status" :theme="theme" :alerts="alerts" @theme="theme = $event"/>
      <div id="content" class="content" tabindex="-1">
        <section v-if="!started" class="empty"><h2>{{ waits[0] }}</h2><p>{{ waits[1] }}</p></section>
        <template v-else>
        <dl class="figures">
          <div v-for="one in figures" :key="one.label">
            <dt>{{ one.label }}</dt><dd>{{ one.value }}</dd><dd class="more">{{ one.more }}</dd></div>
        </dl>
        <section class="panel loss">
          <div class="top"><h2>Loss</h2>
            <ul class="legend" aria-hidden="true"><li class="curve">training</li><li class="validation">validation</li>
              <li class="came">came</li><li class="gone">gone</li><li class="fault">fault</li></ul>
            <Choice label="Curves over" :choices="['steps', 'tokens', 'time']" v-model="over"/></div>
          <Chart label="Training loss" :rows="rows" :curves="curves.loss" :axis="axis" :format="three"
            :marks="marks" :validations="validations" :theme="shown"/>
        </section>
        <section class="panel under-way">
          <div class="top"><h2>Round {{ ENDS[watching.state] ? "" : whole(head.round.outer_step) }}</h2></div>
          <Round :round="head.round" :usual="head.figures.step_s" :end="ENDS[watching.state] ?? ''" :theme="shown"/>
        </section>
        <section v-for="one in charts" :key="one.label" class="panel third">
          <div class="top"><h2>{{ one.label }}</h2><p class="value">{{ one.value }}</p></div>
          <Chart :label="one.label" :rows="rows" :curves="one.curves" :axis="axis" :format="one.format"
            :zero="true" :counts="one.counts ?? false" :top="one.top ?? null" :theme="shown" small/>
          <p class="note">{{ one.note }}</p>
        </section>
        <section class="panel contributors">
          <div class="top"><h2>Contributors</h2><p class="value">{{ plural(head.members.length, "peer", "peers") }}</p></div>
          <Members :members="head.members"/></section>
        <section class="panel news"><div class="top"><h2>Faults and news</h2></div>
          <p class="note">{{ faults }}</p>
          <ol><li v-for="mark in news" :key="mark.key" :class="mark.weight"><time>{{ clock(mark.time) }}</time>
            <span><a class="peer" :href="'/peer/' + mark.member">{{ name(mark.member) }}</a> {{ markWords(mark.kind, mark.words) }}</span></li></ol>
        </section>
        </template>
      </div>
      <footer>Figures are the members’ own word; nothing is decided by them. This page only reads.</footer>
    </div>`,
  setup: () => ({
    ENDS,
    clock,
    markWords,
    name,
    plural,
    whole,
    three: (value) => fixed(value, 3),
    curves: { loss: [{ key: "loss", label: "loss", color: "--curve" }] },
  }),
  mounted() {
    this.past = new Past();
    this.stop = poll("/data/run", this.take, () => (this.reached = false));
  },
  beforeUnmount() {
    this.stop();
  },
  computed: {
    axis() {
      return AXIS[this.over];
    },
    started() {
      return this.head !== null && this.rows.length > 0;
    },
    title() {
      return this.head?.run.name || "Atoll";
    },
    id() {
      const run = this.head?.run;
      if (!run?.id) return "";
      return [run.id.slice(0, 12), run.model, run.codec].filter(Boolean).join(" · ");
    },
    waits() {
      if (!this.head) return ["One moment", "The page asks the dashboard for the run."];
      const { members } = this.head;
      if (this.watching.state === "waiting") {
        return [
          "No member has told anything yet",
          this.watching.trouble
            ? "The addresses of the invite are asked again and again."
            : "Looking for a member of the run that tells its past.",
        ];
      }
      const here = members.filter((one) => one.gone_at === null).length;
      return [
        "Waiting for the first outer step",
        `${plural(here, "member is", "members are")} here. The curves begin with the first commit.`,
      ];
    },
    tab() {
      return this.started ? `${fixed(this.head.figures.loss, 3)} · ${this.title}` : this.title;
    },
    figures() {
      const f = this.head.figures;
      const of = this.head.run.outer_steps;
      const left = of && f.step_s && f.outer_step < of ? `about ${duration((of - f.outer_step) * f.step_s)} left` : "";
      return [
        {
          label: "Loss",
          value: fixed(f.loss, 3),
          more: f.validation === null ? "nats a byte" : `validation ${fixed(f.validation, 3)}`,
        },
        {
          label: "Outer step",
          value: whole(f.outer_step),
          more: of ? `of ${whole(of)}${left ? ", " + left : ""}` : "",
        },
        { label: "Tokens", value: short(f.tokens), more: `${short(f.tokens_per_s)} a second` },
        {
          label: "Members",
          value: whole(f.members),
          more: `${whole(f.took_part)} took part${f.gone ? `, ${whole(f.gone)} gone` : ""}`,
        },
        { label: "Time a step", value: seconds(f.step_s), more: `round ${seconds(f.round_s)}` },
        { label: "Busy", value: percent(f.busy), more: f.busy === null ? "" : `${percent(1 - f.busy)} blocked` },
      ];
    },
    charts() {
      const f = this.head.figures;
      const line = (key, label, color = "--curve", more = {}) => ({ key, label, color, ...more });
      const part = (value) => percent(value);
      return [
        {
          label: "Throughput",
          value: `${short(f.tokens_per_s)} tokens/s`,
          format: (v) => short(v),
          curves: [line("tokens_per_s", "tokens/s", "--curve", { area: true })],
          note: "Committed tokens a second, of the whole run",
        },
        {
          label: "Members",
          value: `${percent(f.participation)} take part`,
          counts: true,
          format: whole,
          curves: [
            line("took", "took part", "--curve", { step: true, area: true }),
            line("live", "live", "--muted", { step: true, dashed: true }),
          ],
          note: "Took part, and live (dashed)",
        },
        {
          label: "Round time",
          value: seconds(f.round_s),
          format: seconds,
          curves: [line("round_s", "round")],
          note: "From the descriptor to the applied step",
        },
        {
          label: "Bytes",
          value: `${short(f.sent_per_s, "B")}/s`,
          format: (v) => `${short(v, "B")}/s`,
          curves: [line("sent_per_s", "sent a second", "--curve", { area: true })],
          note: `Sent by all, one way; received ${short(f.received_per_s, "B")}/s`,
        },
        {
          label: "Utilisation",
          value: `${percent(f.busy)} busy`,
          format: part,
          top: 1,
          curves: [
            line("busy", "busy", "--curve", { area: true }),
            line("blocked", "blocked", "--blocked", { dashed: true }),
          ],
          note: "Mean part of a step spent training; blocked (dashed)",
        },
        {
          label: "Quantisation error",
          value: percent(f.error, 2),
          format: (v) => percent(v, 2),
          curves: [line("error", "error")],
          note: "Relative, L2; what is lost is sent with the next step",
        },
      ];
    },
    faults() {
      const counted = Object.entries(this.head.faults);
      return counted.length
        ? counted.map(([kind, number]) => `${whole(number)} ${faultWords(kind, number)}`).join(" · ")
        : "No peer lost, no strike and no fork.";
    },
    news() {
      return this.marks.slice(-MOST_NEWS).reverse();
    },
  },
  methods: {
    async take(said) {
      const began = performance.now();
      this.answeredAt = this.now = began;
      this.reached = true;
      this.past.add(said);
      // Frozen, so that Vue does not watch thousands of numbers one by one.
      this.head = Object.freeze(said.head);
      if (said.steps.length || said.whole) this.rows = Object.freeze(this.past.rows);
      if (said.marks.length || said.whole) this.marks = Object.freeze(this.past.marks);
      if (this.validations.length !== said.validations.length) this.validations = Object.freeze(said.validations);
      await this.$nextTick();
      requestAnimationFrame(() =>
        setTimeout(() => {
          performance.clearMeasures("atoll-update");
          performance.measure("atoll-update", { start: began });
        }),
      );
    },
  },
};
