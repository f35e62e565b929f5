// A peer's page.
import Chart from "/assets/chart.js";
import { clock, duration, fixed, markWords, percent, plural, seconds, short, whole } from "/assets/format.js";
import { aging, Bar, themed } from "/assets/frame.js";
import { poll } from "/assets/store.js";

export default {
  components: { Bar, Chart },
  mixins: [themed, aging],
  props: { peer: { type: String, required: true } },
  data: () => ({ head: null, said: null, rows: [] }),
  template: `
    <div class="page" :class="{ stale }">
      <Bar :title="peer.slice(-6)" :id="run" :status="status" :theme="theme" :alerts="alerts" back @theme="theme = $event"/>
      <div id="content" class="content" tabindex="-1">
        <p class="whole-id">{{ peer }}</p>
        <section v-if="!one" class="empty"><h2>{{ said ? "No such peer" : "One moment" }}</h2>
          <p>{{ said ? "Nobody has told of a peer with this id." : "The page asks the dashboard for the peer." }}</p></section>
        <template v-else>
        <dl class="figures">
          <div v-for="fact in figures" :key="fact.label">
            <dt>{{ fact.label }}</dt><dd>{{ fact.value }}</dd><dd class="more">{{ fact.more }}</dd></div>
        </dl>
        <section class="panel whole"><div class="top"><h2>Took part</h2><p class="value">{{ took }}</p></div>
          <div class="strip" role="img" :aria-label="took">
            <i v-for="[step, part] in strip" :key="step" :class="{ took: part }" :title="'outer step ' + step + (part ? ', took part' : ', did not')"></i></div>
          <p class="note">The last {{ strip.length }} outer steps, the newest on the right</p></section>
        <section v-for="chart in charts" :key="chart.label" class="panel half">
          <div class="top"><h2>{{ chart.label }}</h2><p class="value">{{ chart.value }}</p></div>
          <Chart :label="chart.label" :rows="rows" :curves="chart.curves" :format="chart.format"
            :zero="chart.zero" :top="chart.top ?? null" :theme="shown" small/>
          <p class="note">{{ chart.note }}</p>
        </section>
        <section class="panel half"><div class="top"><h2>Traffic</h2></div>
          <dl class="facts"><div v-for="[label, value] in traffic" :key="label">
            <dt>{{ label }}</dt><dd>{{ value }}</dd></div></dl></section>
        <section class="panel half news">
          <div class="top"><h2>Faults and news</h2><p class="value">{{ plural(one.strikes, "strike", "strikes") }}</p></div>
          <ol><li v-for="(mark, index) in news" :key="index" :class="mark[5]">
            <time>{{ clock(mark[0]) }}</time><span>{{ markWords(mark[2], mark[4]) }}</span></li></ol>
          <p v-if="!news.length" class="note">Nothing yet.</p></section>
        </template>
      </div>
      <footer>Figures are the peer’s own word; nothing is decided by them.</footer>
    </div>`,
  setup: () => ({ clock, markWords, plural }),
  mounted() {
    this.stop = poll(`/data/peer/${encodeURIComponent(this.peer)}`, this.take, () => (this.reached = false));
  },
  beforeUnmount() {
    this.stop();
  },
  computed: {
    one() {
      return this.said?.peer ?? null;
    },
    run() {
      return this.head?.run.name ? `in ${this.head.run.name}` : "";
    },
    tab() {
      return `${this.peer.slice(-6)} · ${this.head?.run.name || "Atoll"}`;
    },
    strip() {
      return this.said?.strip ?? [];
    },
    took() {
      const took = this.strip.filter(([, part]) => part).length;
      return `${took} of ${this.strip.length}`;
    },
    news() {
      return (this.said?.marks ?? []).slice(-12).reverse();
    },
    figures() {
      const { one } = this;
      const gone = one.gone_at !== null;
      const spent = (gone ? one.gone_at : this.head.time) - one.came_at;
      return [
        { label: "Does", value: one.doing, more: gone ? one.gone_reason : one.device },
        { label: "Rank", value: whole(one.rank), more: `of ${whole(one.of)}, ${percent(one.share, 1)} of the tokens` },
        { label: "Tokens", value: short(one.tokens), more: `in ${plural(one.n_steps, "outer step", "outer steps")}` },
        { label: "Tokens/s", value: gone ? "–" : short(one.tokens_per_s), more: `inner step ${whole(one.progress)}` },
        { label: "Outer step", value: whole(one.outer_step), more: `of ${whole(this.head.figures.outer_step)}` },
        {
          label: gone ? "Gone" : "Here",
          value: duration(gone ? this.head.time - one.gone_at : spent),
          more: `since ${clock(gone ? one.gone_at : one.came_at)}`,
        },
      ];
    },
    traffic() {
      const { one } = this;
      const rate = (value) => (value ? `${short(value, "B")}/s` : "not known");
      return [
        ["Sent in rounds", short(one.sent, "B")],
        ["Received in rounds", short(one.received, "B")],
        ["Its link, up", rate(one.up)],
        ["Its link, down", rate(one.down)],
      ];
    },
    charts() {
      const { one } = this;
      const line = (key, label, more = {}) => ({ key, label, color: "--curve", ...more });
      return [
        {
          label: "Loss",
          value: fixed(one.loss, 3),
          zero: false,
          format: (v) => fixed(v, 3),
          curves: [line("loss", "loss")],
          note: "Mean training loss of its inner steps",
        },
        {
          label: "Throughput",
          value: `${short(one.tokens_per_s)} tokens/s`,
          zero: true,
          format: (v) => short(v),
          curves: [line("tokens_per_s", "tokens/s", { area: true })],
          note: "While it trains",
        },
        {
          label: "Utilisation",
          value: `${percent(one.busy)} busy`,
          zero: true,
          top: 1,
          format: (v) => percent(v),
          curves: [line("busy", "busy", { area: true })],
          note: "Part of an outer step spent training, not waiting",
        },
        {
          label: "Quantisation error",
          value: percent(one.error, 2),
          zero: true,
          format: (v) => percent(v, 2),
          curves: [line("error", "error")],
          note: "Relative, L2, of its contribution as it was sent",
        },
      ];
    },
  },
  methods: {
    take(said) {
      this.answeredAt = this.now = performance.now();
      this.reached = true;
      this.head = Object.freeze(said.head);
      this.said = Object.freeze(said);
      if (!said.peer) return;
      const [first, ...others] = said.columns;
      const rows = said.track.map((values) => ({
        step: values[0],
        ...Object.fromEntries(others.map((column, index) => [column, values[index + 1]])),
      }));
      const changed = rows.length !== this.rows.length || rows.at(-1)?.step !== this.rows.at(-1)?.step;
      if (changed) this.rows = Object.freeze(rows);
    },
  },
};
