//! What agents say and what becomes of them, as scripts; see [`super::scenarios`].

use super::script::scenarios;

scenarios! {
    reports: "
        agent a1 slots=2
        agent a2 slots=2
        create web
        # Of another agent, of generations that are not held, of another life: nothing.
        report a2 web 1 running
        report a9 web 1 running
        report a1 web 0 running
        report a1 web 2 running
        report a1 web 1 running start=2
        report a1 web 1 running ledger=2
        report a1 #ghost-1 1 running
        # Absent before it was ever seen: it is still to be started.
        report a1 web 1 absent
        report a1 web 1 running endpoints=h:1
        report a1 web 1 running endpoints=h:1
        report a1 web 1 running endpoints=h:2
        # A refusal of what runs proves nothing.
        report a1 web 1 refused reason=full
        report a1 web 1 exited code=137 reason=killed
        # Double and late.
        report a1 web 1 exited code=0
        report a1 web 1 running
        report a1 web 1 start-failed
        report a1 web 1 absent
        show
        reset web
        report a2 web 2 running
        report a2 web 2 absent
        create fails
        report a1 fails 1 start-failed reason=no_such_program
        show
    ";
    recovery_resumed: "
        agent a1
        recover-agent a1 id=r1
        lose a1
        recover-agent a1 id=r1
        recover-agent a1 id=r2
        recover-agent a2
        show
        # What was said of a loss ends with it.
        agent a1
        recover-agent a1 id=r1
        show
    ";
    recovery: "
        agent a1 slots=2
        agent a2 slots=2
        create web policy=auto
        create stays
        report a1 web 1 running endpoints=h:1 lease=4
        report a2 stays 1 running
        # It is not down, or what is meant is not this generation: nothing.
        recover web 1
        lose a1
        recover web 2
        # Its lease is over: another agent gets the next generation.
        recover web 1
        report a2 web 2 running endpoints=h:2
        # Its old agent is back, and late with what it says.
        agent a1 slots=2
        report a1 web 1 exited reason=lease_over lease-ended
        report a1 web 1 running
        show
        # MANUAL: nobody does anything by himself.
        lose a2
        recover stays 1
        # Nobody has room, so it waits.
        cordon a1
        recover web 2
        uncordon a1
        show
    ";
    the_end_of_a_lease_moves_a_sandbox: "
        agent a1
        agent a2
        create web policy=auto
        report a1 web 1 running
        # Its agent hears nobody, or too late: another one is better, though by load and name it would come first.
        report a1 web 1 exited reason=lease_over lease-ended
        cordon a1
        # There is no other one.
        report a2 web 2 exited reason=lease_over lease-ended
    ";
    recovery_of_what_failed: "
        agent a1 slots=1
        create web policy=auto
        report a1 web 1 running
        report a1 web 1 exited code=3 reason=crashed
        recover web 1
        report a1 web 2 start-failed reason=no_such_image
        recover web 2
        # Its lease ended, and its agent was not lost: another place at once.
        report a1 web 3 running
        report a1 web 3 exited reason=lease_over lease-ended
        report a1 web 4 running
        # What has done its work stays done.
        report a1 web 4 exited code=0 reason=done
        recover web 4
        show
    ";
    leases: "
        agent a1 slots=1
        agent a2 slots=1
        create web
        report a1 web 1 running
        # AUTO_RECREATE counts once the agent has confirmed it: it may run on without a lease.
        update web policy=auto timeout=10
        lose a1
        recover web 1
        agent a1 slots=1
        # What it says of an older policy confirms nothing.
        report a1 web 1 running lease=5
        lose a1
        recover web 1
        agent a1 slots=1
        report a1 web 1 running lease=7
        show
        # Shorter: the old one counts until the new one is confirmed. Longer: the new one counts at once.
        update web timeout=5
        update web timeout=60
        show
        update web timeout=7
        report a1 web 1 running lease=17
        show
        report a1 web 1 running lease=19
        show
        update web policy=manual
        update web policy=auto
        lose a1
        recover web 1
    ";
    strong_rolls_back: "
        agent a1 slots=1
        create job strong ports=80 id=r1
        report a1 job 1 start-failed reason=no_such_image
        # Slot, ports and name are free, and the retry of its request hears why.
        show
        create job strong ports=80 id=r1
        create job strong ports=80 id=r2
        # What has run is not rolled back.
        report a1 job 1 running
        report a1 job 1 exited code=1 reason=crashed
        create job strong ports=80 id=r2
        # Nor is it when the next generation can't be started.
        reset job
        report a1 job 2 start-failed reason=disk_full
        show
        # A minute later nothing is known of the first request.
        advance 61s
        housekeeping
        terminate job
        create job strong ports=80 id=r1
    ";
    strong_moves_and_rolls_back: "
        agent a1 slots=1
        agent a2 slots=1
        create job strong id=r1
        report a1 job 1 refused reason=no_disk
        report a2 job 2 start-failed reason=no_such_image
        create job strong id=r1
        # Refused, and nowhere else is room: rolled back at once.
        create fill
        create job strong id=r2
        report a2 job 1 refused reason=no_disk
        create job strong id=r2
        # Reset before it ever ran, and failed: rolled back when the last generation is gone.
        agent a3 slots=1
        create job strong id=r3
        reset job
        report a3 job 2 start-failed reason=no_such_image
        show
        report a2 job 1 absent
        create job strong id=r3
    ";
    admission_refused: "
        # A refusal proves that nothing was started: it goes elsewhere at once.
        agent a1 slots=1
        agent a2 slots=1
        create web
        report a1 web 1 refused reason=no_disk
        report a1 web 1 refused reason=no_disk
        # Nowhere else is room: FAST waits, and is not offered to the same agent again at once,
        create other
        report a2 web 2 refused reason=no_disk
        show
        # ... but by the next housekeeping.
        housekeeping
        # Others may have the room meanwhile.
        create third wait=60s cpu=1
        report a2 web 3 refused reason=no_disk
        show
        terminate third
        report a2 #third 1 absent
        report a2 web 4 running
        show
    ";
    refused_by_everyone: "
        agent a1 slots=1
        agent a2 slots=1
        create web
        report a1 web 1 refused reason=1
        report a2 web 2 refused reason=2
        report a1 web 3 refused reason=3
        report a2 web 4 refused reason=4
        report a1 web 5 refused reason=5
        report a2 web 6 refused reason=6
        report a1 web 7 refused reason=7
        report a2 web 8 refused reason=8
        # A reset begins anew.
        reset web
        report a1 web 9 refused reason=9
    ";
    agents: "
        agent a1 slots=2
        # The same again is no event; a change is.
        agent a1 slots=2
        agent a1 slots=1
        create web
        # Restarted: a newer start; an older one is refused.
        agent a1 slots=1 start=2
        agent a1 slots=1 start=1
        # A second ledger with a live agent's id.
        agent a1 slots=1 ledger=2
        report a1 web 1 running start=2
        # Lost, but only the incarnation that was not heard of.
        lose a1 start=1
        lose nobody
        lose a1 start=2
        lose a1 start=2
        create next
        # What it says of what runs is old; of what ended it is true.
        report a1 web 1 running start=2
        # Nor can another ledger speak for what the lost one holds,
        agent a1 slots=1 ledger=2
        # ... while the same one returns.
        agent a1 slots=1 start=2
        report a1 web 1 running start=2
        lose a1 start=2
        report a1 web 1 exited code=0 start=2
        # Now it holds nothing: another ledger may take the name.
        agent a1 slots=1 ledger=2
        show
        # Smaller than what it holds: nothing is free, nothing is taken away.
        agent a1 slots=2 ledger=2
        create one cpu=4000
        create two cpu=4000
        agent a1 slots=1 cpu=1000 ledger=2
        terminate one
        report a1 #one 1 absent ledger=2
        create three
        show
    ";
    lost_and_found: "
        agent a1 slots=3
        create runs
        create starts
        create ends
        report a1 runs 1 running
        report a1 ends 1 running
        terminate ends
        lose a1
        show
        # Back again: what still runs is RUNNING, what vanished FAILED.
        agent a1 slots=3
        report a1 runs 1 running
        report a1 starts 1 absent
        report a1 #ends 1 absent
        show
        # Back with room: those that wait have it.
        lose a1
        create waits wait=60s
        agent a1 slots=3
    ";
    cordons: "
        agent a1 slots=2
        cordon a1 reason=new_disk id=r1
        cordon a1 reason=new_disk id=r1
        cordon a1 reason=other id=r2
        create web
        create web wait=60s
        # A restart does not uncordon.
        agent a1 slots=2 start=2
        uncordon a1 id=r3
        uncordon a1 id=r4
        uncordon a1 id=r3
        uncordon a1 id=r1
        cordon nobody
        uncordon nobody
        show
    ";
    drains: "
        agent a1 slots=4
        agent a2 slots=1
        cordon a2
        create moves policy=auto
        create moves-too policy=auto
        create stays
        report a1 moves 1 running
        report a1 stays 1 running
        # Nobody else has room yet: it waits for some.
        drain a1 reason=new_disk for=60s id=r1
        drain a1 reason=new_disk for=60s id=r1
        housekeeping
        create another
        uncordon a2
        housekeeping
        # The old one is surely gone before the new one is announced.
        report a1 moves-too 1 absent
        report a2 moves-too 2 running
        # Whoever asks to wait has nothing ended.
        advance 61s
        housekeeping
        show
        # The deadline moves, and now the rest is ended.
        drain a1 for=5s terminate
        housekeeping
        advance 6s
        housekeeping
        report a1 #stays 1 absent
        report a1 moves 1 absent
        remove a1
        show
        # It gets nothing new until the drain is ended: then who waits has it.
        uncordon a1
        housekeeping
        show
    ";
    drains_refused: "
        agent a1 slots=4
        drain a2
        drain a1 terminate
        drain a1 for=-1s
        # At once.
        create web
        drain a1 for=0s terminate
        housekeeping
        lose a1
        remove a1 fenced
        show
    ";
    drains_of_the_lost: "
        agent a1 slots=4
        agent a2 slots=4
        cordon a2
        create keeps policy=auto
        create ends
        lose a1
        uncordon a2
        drain a1 for=1s terminate
        advance 2s
        # What the leader recovers by its lease is left to it.
        housekeeping
        recover keeps 1
        housekeeping
        agent a1 slots=4 start=2
        report a1 #ends 1 absent start=2
        show
    ";
    removals: "
        agent a1 slots=4
        agent a2 slots=1
        create web
        create job strong
        create ends
        report a1 web 1 running
        terminate ends
        # It holds sandboxes; it is alive.
        remove a1
        remove a1 fenced id=r1
        lose a1
        remove a1 id=r1
        remove a1 fenced id=r2
        show
        # The retry hears the same, even when an agent of that name has come again.
        remove a1 fenced id=r2
        agent a1
        remove a1 fenced id=r2
        cordon a2 id=r3
        remove a2
        cordon a2 id=r3
        remove nobody
        # An agent that is alive would come back at once, however little it holds.
        agent a3
        remove a3
        remove a3 fenced
        lose a3
        remove a3
        # What was held may have an agent again.
        reset web
    ";
    removal_with_two_generations: "
        # The agent that is removed holds two generations of one sandbox.
        agent a1 slots=9
        create web
        report a1 web 1 running
        reset web
        create bye
        report a1 bye 1 running
        reset bye
        terminate bye
        create job strong
        reset job
        lose a1
        remove a1 fenced
        show
    ";
}
