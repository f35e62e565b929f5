"""How the report looks: one style sheet, light and dark, from a telephone to a wide screen."""

STYLE = """
:root{color-scheme:light dark;--back:#fbfbf9;--card:#fff;--ink:#1c2326;--dim:#5b666b;--line:#e3e5e1;
--tone1:#0b6e99;--tone2:#c2410c;--tone3:#9aa5a9;--fault:#c81e3a}
@media (prefers-color-scheme:dark){:root{--back:#12171a;--card:#1a2125;--ink:#e6ebec;--dim:#97a4a9;--line:#2c363b;
--tone1:#57c1ea;--tone2:#fb923c;--tone3:#6b7a80;--fault:#ff6b81}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px 16px 48px;max-width:1180px;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,sans-serif;display:grid;gap:16px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
header,.tiles,.wide{grid-column:1/-1;min-width:0}
h1{margin:0 0 4px;font-size:28px;line-height:1.2;overflow-wrap:anywhere}
header ul{margin:0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;color:var(--dim)}
header li{overflow-wrap:anywhere;min-width:0}
.tiles{margin:0;display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(min(46%,190px),1fr))}
.tiles div,section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px;min-width:0}
dt{color:var(--dim);font-size:13px}
dd{margin:0;font-size:13px;color:var(--dim)}
dt+dd{font-size:22px;line-height:1.3;color:var(--ink);font-variant-numeric:tabular-nums}
h2{margin:0;font-size:17px}
section>p{margin:0 0 10px;color:var(--dim);font-size:13px}
.none{color:var(--dim);margin:8px 0 0}
.tabs>input{position:absolute;opacity:0}
.tabs>label{display:inline-block;padding:2px 12px;margin:0 6px 8px 0;border:1px solid var(--line);border-radius:14px;
font-size:13px;cursor:pointer}
.tabs>input:checked+label{background:var(--tone1);border-color:var(--tone1);color:var(--card)}
.tabs>input:focus-visible+label{outline:2px solid var(--tone1);outline-offset:2px}
.by{display:none}
#x0:checked~.by:nth-of-type(1),#x1:checked~.by:nth-of-type(2),#x2:checked~.by:nth-of-type(3){display:block}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;font-size:13px;color:var(--dim)}
.ranks th:nth-child(2),.ranks td:nth-child(2),.ranks th:nth-child(4),.ranks td:nth-child(4){text-align:left}
small{color:var(--dim)}
abbr{text-decoration:none;font-family:ui-monospace,monospace}
.bar{display:inline-block;height:10px;border-radius:3px;background:var(--tone1)}
.events th:last-child,.events td:last-child{text-align:left;white-space:normal;width:100%;overflow-wrap:anywhere}
.events .bad td:last-child{color:var(--fault)}
"""
