"""The rules of a round, as pure functions: no clock, no file, no socket, no random source.

`engine` says what any engine is, `events` holds the words that it shares with the shell, `collect`
counts answers, `rounds` is the engine with a cohort for each round. `cohort` and `early_stopping`
are its arithmetic.

A new phase of `rounds`, such as those of a secure sum, needs this:

* A frozen dataclass with the phase's own data, a member of `Phase`, and its name in
  federated.proto. A phase hands to the next one, by its constructor, what that one is made of, and
  nothing else lives on. `reports` goes through all phases of an attempt, since the view shows it.
* If it waits for clients: a `collect`, a place in `Collecting`, and in `answer` the event that
  counts. `_answered` then counts those who answer, fail or leave, and `State.deadline` is the event
  that ends the wait. Whom a phase asks are those who answered the one before (`got`); its quorum
  is what the sum needs. The phase itself says what follows at the goal, at the deadline, and
  without a quorum (`_no_quorum`).
* An effect that hands out the work, then StartDeadline. REPORTING ends in `_aggregate`, the one
  place to put phases before AGGREGATING.
* In the shell: the effect in `run.effects`, a kind of `Work`, and the answer in `run.results`.
* After a crash an attempt goes on in REPORTING with the updates that are durable (`Standing`).
  Phases after it begin again, unless their answers are made durable, too, and are given back.

A buffered engine is a module beside `rounds` with a state of its own. It speaks the same events
and effects, may count with `Collect`, and shows its state as a `RunView`. `server.app` chooses.
"""
