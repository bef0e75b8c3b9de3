//! What callers can command, and every way to be refused, as scripts. Read them in `snapshots/`: under each command stand
//! its events (revision, what, about whom, after which revision, by whom, why) and its answer.

use super::script::scenarios;

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
