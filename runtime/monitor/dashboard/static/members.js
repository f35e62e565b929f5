// Everyone, ranked by the tokens that they have contributed.
import { fixed, name, percent, short, whole } from "./format.js";

const FIRST = 20;

export default {
  props: { members: { type: Array, required: true } },
  data: () => ({ all: false }),
  template: `
    <table class="members">
      <thead><tr>
        <th scope="col" class="number rank"><span class="unseen">Rank</span></th>
        <th scope="col">Peer</th>
        <th scope="col">Does</th>
        <th scope="col" class="number">Tokens</th>
        <th scope="col" class="wide bar"><span class="unseen">Share of the tokens</span></th>
        <th scope="col" class="number wide">Steps</th>
        <th scope="col" class="number">Tokens/s</th>
        <th scope="col" class="number wide">Loss</th>
        <th scope="col" class="number wide">Busy</th>
        <th scope="col" class="number wide">Sent</th>
        <th scope="col" class="number wide">Received</th>
        <th scope="col" class="number wide">Error</th>
        <th scope="col" class="number wide">Strikes</th>
      </tr></thead>
      <tbody>
        <tr v-for="(one, index) in shown" :key="one.peer" :class="{ gone: one.gone_at !== null }">
          <td class="number rank">{{ index + 1 }}</td>
          <th scope="row"><a class="peer" :href="'/peer/' + one.peer">{{ name(one.peer) }}</a></th>
          <td class="does"><i class="swatch" :class="one.doing"></i>{{ one.doing }}</td>
          <td class="number">{{ short(one.tokens) }}</td>
          <td class="wide bar"><span class="share"><i :style="{ width: (100 * one.tokens) / most + '%' }"></i></span><span class="number">{{ percent(one.tokens / total, 1) }}</span></td>
          <td class="number wide">{{ whole(one.n_steps) }}</td>
          <td class="number">{{ one.gone_at === null ? short(one.tokens_per_s) : "–" }}</td>
          <td class="number wide">{{ fixed(one.loss, 3) }}</td>
          <td class="number wide">{{ percent(one.busy) }}</td>
          <td class="number wide">{{ short(one.sent, "B") }}</td>
          <td class="number wide">{{ short(one.received, "B") }}</td>
          <td class="number wide">{{ percent(one.error, 2) }}</td>
          <td class="number wide" :class="{ struck: one.strikes }">{{ one.strikes }}</td>
        </tr>
      </tbody>
    </table>
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
