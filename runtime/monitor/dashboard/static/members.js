// Everyone, ranked by the tokens that they have contributed.
import { fixed, name, percent, short, whole } from "./format.js";

const FIRST = 20;

export default {
  props: { members: { type: Array, required: true } },
  data: () => ({ all: false }),
  // No <table>: rows out of sight are then neither laid out nor painted, which matters with hundreds a second.
  template: `
    <div class="members" role="table" aria-label="Contributors">
      <div class="row head" role="row">
        <span role="columnheader" class="number rank"><span class="unseen">Rank</span></span>
        <span role="columnheader">Peer</span>
        <span role="columnheader">Does</span>
        <span role="columnheader" class="number">Tokens</span>
        <span role="columnheader" class="wide"><span class="unseen">Share of the tokens</span></span>
        <span role="columnheader" class="number wide">Steps</span>
        <span role="columnheader" class="number">Tokens/s</span>
        <span role="columnheader" class="number wide">Loss</span>
        <span role="columnheader" class="number wide">Busy</span>
        <span role="columnheader" class="number wide">Sent</span>
        <span role="columnheader" class="number wide">Received</span>
        <span role="columnheader" class="number wide">Error</span>
        <span role="columnheader" class="number wide">Strikes</span>
      </div>
      <div v-for="(one, index) in shown" :key="one.peer" class="row" role="row" :class="{ gone: one.gone_at !== null }">
        <span role="cell" class="number rank">{{ index + 1 }}</span>
        <span role="rowheader"><a class="peer" :href="'/peer/' + one.peer">{{ name(one.peer) }}</a></span>
        <span role="cell"><i class="swatch" :class="one.doing"></i>{{ one.doing }}</span>
        <span role="cell" class="number">{{ short(one.tokens) }}</span>
        <span role="cell" class="wide share"><span>
          <i :style="{ width: (100 * one.tokens) / most + '%' }"></i></span><span class="number">{{ percent(one.tokens / total, 1) }}</span></span>
        <span role="cell" class="number wide">{{ whole(one.n_steps) }}</span>
        <span role="cell" class="number">{{ one.gone_at === null ? short(one.tokens_per_s) : "–" }}</span>
        <span role="cell" class="number wide">{{ fixed(one.loss, 3) }}</span>
        <span role="cell" class="number wide">{{ percent(one.busy) }}</span>
        <span role="cell" class="number wide">{{ short(one.sent, "B") }}</span>
        <span role="cell" class="number wide">{{ short(one.received, "B") }}</span>
        <span role="cell" class="number wide">{{ percent(one.error, 2) }}</span>
        <span role="cell" class="number wide" :class="{ struck: one.strikes }">{{ one.strikes }}</span>
      </div>
    </div>
    <button v-if="members.length > first" class="quiet" type="button" :aria-expanded="all" @click="all = !all">
      {{ all ? "Show the first " + first : "Show all " + whole(members.length) }}
    </button>`,
  setup: () => ({ first: FIRST, fixed, name, percent, short, whole }),
  computed: {
    shown() {
      return this.all ? this.members : this.members.slice(0, FIRST);
    },
    total() {
      return this.members.reduce((sum, one) => sum + one.tokens, 0) || 1;
    },
    most() {
      return this.members.reduce((most, one) => Math.max(most, one.tokens), 0) || 1;
    },
  },
};
