"""The tasks: all of their SQL, a module a question. This is the theory of operation.

The states
==========

A task is in exactly one state, which its row tells (the conditions are in `states`, in this one place):

                start       promote         claim              lease             a final outcome
    ─▶ scheduled ───▶ waiting ────────▶ due ────────▶ dispatched ────────▶ running ─────────────────▶ success | error
       │              │                 │ ▲              │  │                 │                          ▲
       │              │                 │ ├──────────────┘  │                 │                          │
       │              │                 │ │ message lost    │                 │                          │
       │              │                 │ └─────────────────┼─────────────────┘                          │
       │              │                 │                   │ another outcome                            │
       └──────────────┴─────────────────┴───────────────────┴────────────────────────────────────────────┘
                                          the deadline has passed, or the attempts are used up

- *scheduled*: its client wants it to begin later, at `start_at`. Until then it is not in the line of its device, and
  holds nothing up; then it takes the place that its acceptance gives it.
- *waiting*: another task of its device comes first.
- *due*: its next attempt may be dispatched at `due_at`. That may lie in the future: the device must be left alone, or
  it is polite to wait.
- *dispatched*: an attempt has been announced by a message, and nobody has begun its call.
- *running*: its call has begun, under a lease; its outcome is awaited, until `overdue_at`.
- *success*, *error*: finished, for good. The row has moved to the table `finished` (deleted and inserted by the
  statement that ends it, `endings`); `code` is what a client is told. Look-ups ask `task` first: what has left it by
  then is in `finished` afterwards.

*Active* means due, dispatched or running: the one task that may configure its device now. A unique index over the
devices of active tasks makes "one at a time" a fact of the schema. The other indexes serve one state each, or lists.

The transitions
===============

| from | to | who | in | what guards it |
| --- | --- | --- | --- | --- |
| - | due | web, on a POST | `inserts` | nothing unfinished of its device is seen; the unique index |
| - | waiting | web, on a POST | `inserts` | something is |
| - | scheduled | web, on a POST | `inserts` | its client wants it later |
| scheduled | waiting | the reconciler | `starts` | `start_at` has come; row lock |
| waiting | due | whoever freed the device, or stored the task | `promotion` | it is the oldest; nothing is active |
| due | dispatched, attempt + 1 | the relay | `claims`, `turns` | `due_at` has come, the deadline has not; row lock |
| dispatched | due | the relay, for what was not confirmed | `claims` | still this very attempt, still dispatched |
| dispatched | due | the reconciler | `overdue` | nobody has begun it for 10 s; still dispatched |
| dispatched, due | running | results, asked for a lease | `leases` | this attempt, never begun, before its deadline |
| running | due | results, on an outcome that is not final | `outcomes` | this very attempt, under this very lease |
| running, due | success, error | results, on a final one | `outcomes` | this very attempt, under this very lease |
| running | error | results, on its fifth lost call | `outcomes` | this very attempt, under this very lease |
| scheduled, waiting, due, dispatched | error | web, on a wish to cancel | `cancels` | this attempt has no lease |
| scheduled, waiting, due, dispatched | error | the reconciler | `expiry` | its deadline is over; its device is free |
| due | error | the reconciler | `expiry` | its attempts are used up, and its device is free |

The lease is the only door to service A
=======================================

A message only announces. What a configurator takes from the queue may be a copy, an old attempt, a dead letter that was
moved back, or forged: before each call it asks whether this attempt may begin, with a number that it has made for this
one call. One statement decides (`leases`), and writes down that the call begins now. So nothing needs to be known of
queues: what may or may not have been published is published again as the next attempt, and a message that came too late
begins nothing. A task that became due again because its message seemed lost is still at its attempt: until a relay
claims the next one, the old message may begin it.

A lease is never given back. Its call ends with an outcome that names it, or at `overdue_at`, when service A has surely
let go of the device: then maintenance reports the call as lost, through the queue of the outcomes, behind those that
are on their way. A final outcome counts though its task is due again, as long as no further attempt was claimed: the
call was given up for lost, and its answer came after all. Everything else that comes late, twice, or for nobody meets
its guard and changes nothing.

Two lanes
=========

What is submitted singly must not wait behind what comes by the thousand: a task of the latter kind is `bulk`. A claim
takes single ones first, but leaves an eighth to the bulk (`lanes`); clients take turns within each lane (`turns`). The
indexes of what is due begin with `bulk`, so that neither lane is read on the way to the other. A task keeps its lane.
Where the bulk has filled the queue, a few single tasks may be announced beyond its room.

What uses up a task
===================

An end without service A's answer says little: the device may be at fault, or A may answer nobody. `service_a.answers`
grows when A has answered somebody. Each lease writes down how far it was (`answers_before`); an unknown end leaves in
`chances` how many more the task may have, and who claims the next attempt judges: if A has answered somebody since that
call began, the end counts. With none left the task ends as an error. Calls that were lost with their configurator are
counted apart (`losts`); what never had a lease is not counted at all.

Taking a task back
==================

Cancelling has the lease as its line, too. A task whose attempt has none ends at once, and its message begins nothing.
Whichever of a lease and a cancel is first locks the row, and the other one sees what it did. An attempt that has had
its lease goes on: `cancel_requested` is set, and `deadline_at` to that moment. So its outcome counts as any does, no
further attempt begins, and the maintenance ends the task as soon as its device is free; `finished.ended_by` says why.
What was cancelled and what expired is an error to the legacy contract.

What differs from the straight way is written into `history`: attempts that ended otherwise than with success, cancels
and who wished for them.

One key, one task
=================

A client that was not answered asks again, under the same `Idempotency-Key`. The key's row and its task are stored by
one statement (`keys`), and the primary key decides between two that come at once: the later one waits for the other's
statement, no longer than that takes, since no transaction of ours stays open around it. Room is judged before the key
is stored. So there is no key without its task, whoever dies at whatever moment; a key is deleted after its task.

Who waits for an end hears of it: every statement that ends tasks notifies their ids (`endings`), at its commit.

Nobody waits for a row
======================

A row that somebody else holds (an open psql, a backfill, a process that stands still) delays its own device and no
other. Statements take rows with SKIP LOCKED; what they skipped they name, and it is asked again later. Inserts take no
row at all.

So nothing stops a task from being stored as waiting while the one in front of it ends and finds nothing waiting. Two
rules keep such a task from being left behind:

1. A new task is due at once only if nothing unfinished of its device is seen; what waits is never overtaken.
2. Who stores a waiting task, and who ends an active one, looks once more **after the commit**: is anything waiting
   there, and nothing active? Whichever of the two commits last sees what the other has done, and promotes.

A process that dies between its commit and that look leaves a waiting task with nothing in front of it; so does one
whose row was held just then. `promotion.promote_stranded` goes round all devices and finds those.

Nobody plans anew
=================

Statistics are of another moment than the one to plan for. Sessions leave nothing to them (`database_session`), and the
statements are written so that rows are found by a key: `CROSS JOIN LATERAL (... OFFSET 0)` looks one up for each of a
batch, `id = ANY(ARRAY(SELECT ...))` reaches those of a batch at once, a scalar subselect with LIMIT 1 asks whether
there is one. The columns of a batch travel through a statement once.

Each statement is a constant beside the one function that sends it: `tests/service_b/tasks/test_plans.py` explains all.

Time
====

What is stored and compared (`start_at`, `due_at`, `deadline_at`, `dispatched_at`, `begun_at`, `overdue_at`) is
*internal time*: the database's clock and a correction, `states.NOW`. When that clock is set, or another host with
another one takes over, the correction is changed by as much, and internal time goes on as if nothing had happened. Who
changes a time by hand writes `now() + (SELECT correction FROM task_clock)`. `created_at`, `not_before` and
`finished_at` are the plain clock.

Between a jump and its correction passes a second. Each process has an estimate of internal time that goes on (`clock`),
and hands it to the statements that must not misdate anything: nothing is begun, due or past its deadline by the jumped
clock alone. What a jump ahead has misdated all the same is mended once it is corrected, and for some time after: it may
be committed only then (`mending`). Who has just started has no estimate to believe in for some seconds. It leads no
maintenance, and takes internal time not to be before the moment at which the leading process last looked
(`states.LATELY`).
"""
