"""A BLiP that runs on one machine, as strict as the real one and stricter where BLiP is silent.

Three paths, POST only: /messages, /commands, /notifications. The rest is 404, other methods 405.

  Content-Type     exactly application/json or application/vnd.lime.{message,command,
                   notification}+json, without a charset; else 415
  Authorization    exactly `Key ` and base64 of identifier:secret of a bot; else 401, reason 13
  throughput       more than the plan in any second: 429, reason 34, and the key stays shut for
                   120 s, for all three paths. What others send with the key (settings.Traffic)
                   counts as well
  envelope         400 with a bare reason 21 to 27; unknown members are refused; 1 MiB at most
  /messages        a valid envelope is 202 with no body, whatever the template. No id, no receipts.
                   The same id twice is two deliveries
  /commands        200, success and failure alike:
                     get lime://wa.gw.msging.net/accounts/+55… to postmaster@wa.gw.msging.net
                     get /notifications?id=…&$skip=…&$take=… to postmaster@msging.net
                     get /message-templates?templateName=…&$skip=…&$take=… to
                       postmaster@wa.gw.msging.net, and so /message-templates-enriched
                     get /ping to postmaster@msging.net
                   pages have at most 100 items (64 if more are asked for);
                   another resource 62, another method 63, a bad argument 64, nothing there 67,
                   a URI that is none 27, another destination 42
  look-up          '+' and %2B; a number that libphonenumber calls impossible is 61; without '+'
                   everything succeeds and nothing is given out. Brazilian identities outside the
                   area codes 11-19, 21, 22, 24, 27, 28 have no ninth digit
  templates        each bot has the templates of templates.json until they are changed, for all
                   bots or for one. settings.Templates chooses what the lists look like and how
                   long they lag, and when a template pauses by itself
  receipts         failed 42 for an identity that no look-up of the bot gave out; failed 13xxxx
                   for content that does not fit the template, and for a template that is not
                   approved. settings.Bot's `marketing` makes MARKETING templates fail, for a whole
                   bot or the first ones for each recipient

Control, all of it JSON:

  GET    /_simulator/inbox        ?id= bot= to= phone= template= after=NUMBER limit=
  DELETE /_simulator/inbox        forget messages, look-ups, counts and penalties
  GET    /_simulator/statistics   requests by path and status, look-ups by phone, repeated ids,
                                  highest per second by bot and kind (others' traffic included),
                                  most in flight by path, others' traffic by bot
  GET POST DELETE /_simulator/faults       rules: see faults.Fault; DELETE takes ?number=
  GET PUT         /_simulator/templates    add or replace, thousands at once: see
                                           templates.Template; GET takes ?bot=
  PATCH           /_simulator/templates    ?name= language= bot= and the changed attributes; without
                                           a language or a bot, all of them
  DELETE          /_simulator/templates    ?name= language= bot=; without any of them, all templates
  GET PUT         /_simulator/settings     change some: see settings.Settings
  GET PUT         /_simulator/bots         add, or change key, plan, traffic: see settings.Bot
  PUT             /_simulator/identities   {phone: identity}: what look-ups answer
  POST            /_simulator/identities   {"phone": …, "bot": …}: as if looked up
  POST   /_simulator/outage       {"seconds": …}: refuse connections, to here too, for so long

Distance (settings.Distance) delays three things: a new connection until it stands, a request until
it is counted and processed, an answer until it is written. With TLS (--certificate) a client waits
for its connection to stand before it writes, as over a real network; without, its first request
arrives late. Nothing models lost packets or bandwidth.

Receipts go to settings.receipts.url with settings.receipts.headers; without a URL there is only
the history.
"""

from tests.local.blip.faults import Fault
from tests.local.blip.settings import Bot, Delays, Marketing, Receipts, Settings, Traffic
from tests.local.blip.simulator import Simulator, wait_until
from tests.local.blip.templates import Template

__all__ = [
    "Bot",
    "Delays",
    "Fault",
    "Marketing",
    "Receipts",
    "Settings",
    "Simulator",
    "Template",
    "Traffic",
    "wait_until",
]
