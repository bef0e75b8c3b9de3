//! Restored clusters, and what agents run that the state does not know, as scripts; see [`super::scenarios`].

use super::script::scenarios;

scenarios! {
    adoption: "
        agent a1 slots=3
        agent a2 slots=2
        create web
        # Nobody has said yet what it runs.
        unknown
        there a1 legacy
        unknown
        there a1 web
        there a1 orphan label=ours
        there a1 foreign label=other
        there a1 e4b85f2f7d8fb1918a47168a87c62761
        there a2 legacy
        unknown
        unknown a2
        unknown nobody
        # One by one: what bears a label, has a name that is taken, no name, or is not there, is refused.
        adopt a1 orphan foreign web e4b85f2f7d8fb1918a47168a87c62761 nothing
        adopt a1 legacy
        # It keeps its name as its id, and is not started anew.
        report a1 legacy 1 running endpoints=h:1
        show
        # A second one of that name is a duplicate, wherever it runs.
        adopt a1 legacy
        adopt a2 legacy
        unknown a2
        # In another namespace its name is free; its id is not.
        adopt a2 legacy in=prod
        adopt a1 web in=prod
        terminate legacy
        report a1 #legacy 1 absent
        show
        adopt a2
        adopt a2
        lose a2
        adopt a2
        adopt nobody
    ";
    adoption_and_room: "
        agent a1 slots=2
        there a1 big mem=9000
        there a1 port ports=80
        there a1 other-port ports=80
        there a1 third
        adopt a1
        # A cordoned agent gets nothing new, and these are there already.
        agent a2 slots=2
        cordon a2
        there a2 fourth
        adopt a2
        show
    ";
    restored: "
        agent a1 slots=2
        agent a2 slots=2
        confirm
        rehome
        create web policy=auto
        report a1 web 1 running lease=4
        restore
        show
        # What comes from the backup may run elsewhere: it is not recovered. What is new is.
        lose a1
        recover web 1
        create new policy=auto
        report a2 new 1 running lease=12
        lose a2
        agent a1 slots=2
        recover new 1
        rehome
        rehome
        rehome from=7
        rehome from=194
        confirm
        confirm
        show
        lose a1
        recover web 1
    ";
}
