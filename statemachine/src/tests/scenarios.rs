//! What every command does, and every way to be refused, as scripts. Read them in `snapshots/`: under each command
//! stand its events (revision, what, about whom, after which revision, by whom, why) and its answer.

use super::script::run;

macro_rules! scenarios {
    ($($name:ident: $script:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(stringify!($name), run($script));
            });
        }
    )*};
}

scenarios! {
    creates: "
        # The cluster is created once, by the first event of the history.
        cluster
        # FAST: created and allocated in one entry.
        agent a1 slots=3
        create web ttl=60s labels=tier:front id=r1
        # A retried request gives the same sandbox, and no event.
        create web ttl=60s labels=tier:front id=r1
        # ... even when it has moved on,
        report a1 web 1 running endpoints=10.0.0.1:80
        create web ttl=60s labels=tier:front id=r1
        # ... but another request with its id is refused,
        create web ttl=61s labels=tier:front id=r1
        create db id=r1
        # ... unless it is of another namespace.
        create prod/web id=r1
        # The name is taken.
        create web id=r2
        create web
        # STRONG: the same events; its UUID is drawn by the leader.
        create job strong id=r3
        report a1 job 1 running
        # An end that is over already, or that of no sandbox, is refused.
        create late at=0s id=r4
        create late at=-5s
        show
    ";
    names: "
        agent a1 slots=2
        create web id=r1
        # The name is free as soon as the termination has committed, while the old one still goes away.
        terminate web id=r2
        create web id=r3
        show
        # A retry of the termination by name does not hit the successor,
        terminate web id=r2
        # ... nor does one that expects the old revision, or names the old id.
        terminate web rev=4
        terminate #web
        terminate #web.2 rev=2
        # The retried create of the old one says what has become of it.
        create web id=r1
        report a1 #web 1 absent
        create web id=r1
        # Nobody is called so, and no id is known so.
        terminate ghost/web id=r4
        terminate nobody id=r4
        terminate #nobody id=r4
        update nobody timeout=5
        reset #web
        update #web.2 timeout=5 rev=1
        terminate web rev=8
        update #web.2 timeout=5
        reset #web.2
    ";
    terminates: "
        agent a1 slots=2
        create web id=r1
        report a1 web 1 running
        terminate web id=r2
        # Again is no event; the sandbox is gone once its absence is proven.
        terminate #web id=r3
        report a1 #web 1 exited code=0
        report a1 #web 1 running
        report a1 #web 1 absent
        terminate #web id=r4
        terminate #web id=r2
        # What nobody holds is gone at once.
        create idle pool=nowhere wait=5s
        terminate idle
        show
    ";
    no_capacity: "
        # Every kind of shortage.
        create web id=r1
        agent a1 slots=2 cpu=1000 mem=1000 labels=disk:ssd
        create web pool=gpu
        create web select=disk:nvme
        create web cpu=1001
        create web mem=1001
        create p ports=80
        create web ports=80
        create q cpu=1
        create web
        agent a2 slots=1 labels=disk:hdd
        cordon a2
        create web select=disk:hdd
        create web
        lose a2
        uncordon a2
        create web
        # All at once.
        terminate #q
        report a1 #q 1 absent
        agent a3 cpu=10
        agent a4 mem=10
        create web cpu=20 mem=20 ports=80 select=disk:ssd
        create web cpu=20 mem=20 ports=80
        # Nothing of it is remembered: the same request id works once there is room.
        create web id=r1
    ";
    placement: "
        # The least loaded by slots, ties by name.
        agent b slots=4
        agent a slots=2
        create s1
        create s2
        create s3
        create s4
        create s5
        create s6
        create s7
        # One that has the image comes first, however loaded; if it does not fit, another.
        agent c slots=9
        agent d slots=2
        image app d,nobody
        create i1 image=app
        create i2 image=app
        create i3 image=app
        # Labels and pools.
        agent e slots=9 labels=disk:ssd,zone:x
        agent f slots=9 pool=gpu
        create l1 select=zone:x
        create g1 pool=gpu
        create n1 select=zone:x,disk:hdd
    ";
    waiting: "
        # Of each shape first come first served.
        agent a1 slots=1
        create now
        create w1 wait=60s id=r1
        create w2 wait=60s
        create big wait=60s cpu=8000
        show
        # A newcomer of the same shape does not overtake, whether it waits or not.
        create w3
        create w4 wait=5s
        # The retry of one that waits changes nothing.
        create w1 wait=60s id=r1
        # The release and the allocation that it makes possible share one entry.
        terminate now
        report a1 #now 1 absent
        # A caller's deadline: FAILED, and the name kept.
        advance 6s
        housekeeping
        show
        # A new agent brings room: the one that waited longest comes first, whatever its shape.
        agent a2 slots=2 cpu=8000
        show
        # A waiting one can be updated and terminated, but not reset.
        create w5 wait=60s pool=none
        update w5 timeout=9
        reset w5
        terminate w5
        # Room that is too small for the first of a shape lets the other shapes pass.
        create huge wait=60s cpu=8000 mem=8000
        create small wait=60s
        terminate w2
        report a2 #w2 1 absent
        reset w4
        show
    ";
    waiting_ports: "
        # Ports make a shape, in whatever order they are named.
        agent a1 slots=9
        create p1 ports=80,443
        create p2 ports=443,80 wait=60s
        create p3 ports=80,443 wait=60s
        create p4 ports=443
        terminate p1
        report a1 #p1 1 absent
        show
    ";
    strong_waits_in_vain: "
        create job strong wait=5s id=r1
        create job strong wait=5s id=r1
        advance 6s
        housekeeping
        # Rolled back: the name is free, and the retry of its request hears why.
        create job strong wait=5s id=r1
        show
    ";
    expiry: "
        agent a1 slots=3
        create web ttl=10s id=r1
        create at at=20s
        create late pool=nowhere wait=600s ttl=10s
        housekeeping
        advance 9s
        housekeeping
        # FAILED ones expire like others; of what nobody holds nothing is left at once.
        report a1 web 1 exited code=7 reason=done
        advance 2s
        housekeeping
        # An agent ends an expired one by itself.
        report a1 at 1 exited expired
        report a1 #at 1 absent
        # It can't end one that expires no more.
        create kept ttl=60s
        update kept expire=never
        report a1 kept 1 exited expired reason=over
        show
        # A minute after its sandbox, the request is forgotten.
        advance 58s
        housekeeping
        advance 2s
        housekeeping
        advance 1s
        housekeeping
        show
    ";
    updates: "
        agent a1 slots=1
        create web id=r1
        update web id=r2 expire=90s labels=a:1,b:2 policy=auto timeout=5
        update web id=r2 expire=90s labels=a:1,b:2 policy=auto timeout=5
        # What is so already is no event.
        update web id=r3 labels=a:1,b:2
        update web labels=c:3 rev=4
        update web labels=d:4 rev=4
        update web expire=never policy=manual
        update web expire=-1s
        update web timeout=86401
        terminate web
        update #web labels=e:5
    ";
    resets: "
        agent a1 slots=1
        agent a2 slots=1
        create web id=r1
        # Of a running one: the next generation elsewhere, while the old one is held until it is gone.
        report a1 web 1 running
        reset web id=r2
        reset web id=r2
        show
        # Two generations are held at most.
        reset web
        # What the old generation says does not concern the new one.
        report a1 web 1 running endpoints=old:1
        report a1 web 1 exited code=1
        report a1 web 1 absent
        report a1 web 1 absent
        report a2 web 2 running endpoints=new:1
        # With no room it waits, without end, and has the room that its own old generation leaves.
        create other
        reset web
        report a2 web 2 absent
        # FAILED: nothing is held, the next generation comes at once.
        report a2 web 3 exited code=3 reason=crashed
        reset web
        # LOST: it may still run.
        lose a2
        reset web
        # Terminating.
        terminate web
        reset #web
        show
    ";
    reset_and_terminated: "
        agent a1 slots=1
        agent a2 slots=1
        create web
        report a1 web 1 running
        reset web
        terminate web
        # Both generations have to be gone; the last one's release names the agent that held it.
        report a2 #web 2 absent
        create next1 wait=60s
        create next2 wait=60s
        report a1 #web 1 absent
    ";
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
    forgets_requests: "
        agent a1 slots=2
        create web id=r1 keep=10s
        update web timeout=5 id=r2 keep=5s
        cordon a1 id=r3 keep=20s
        show
        advance 6s
        housekeeping
        # While its sandbox lives, a create is remembered.
        advance 600s
        housekeeping
        terminate web id=r4 keep=1s
        report a1 #web 1 absent
        advance 9s
        housekeeping
        advance 2s
        housekeeping
        show
    ";
    invalid: "
        agent a1 slots=0
        agent a1 slots=1 start=0
        create web ports=80,80 cpu=99999999 id=r1
        create web ttl=0s wait=-1s
        terminate web id=r1 keep=-1s
        create web id=r2 keep=999999999s
        show
    ";
}
