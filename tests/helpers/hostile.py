"""What a model or an environment might write to do more than be read."""

HOSTILE = [
    "<script>alert(1)</script>",
    "</code></pre><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "```\n\n<script>alert(1)</script>\n```",
    "\n\n<script>\nalert(1)\n</script>\n\n",
    "[/] [bold red]x[/bold red] [link=javascript:alert(1)]y[/link]",
    "[x](javascript:alert(1)) ![x](http://evil/x.png) <http://evil>",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred\x9b31m",
    "one\rtwo\x0bthree\x0cfour\x85five\u2028six\u2029seven",
    "\u202eright to left\u2066 \u200b\ufeff",
    "\x00\x7f\ud800",
]
