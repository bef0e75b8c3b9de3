//! Batches and streams of creates, as scripts; see `scenarios` for how they read.

use super::script::scenarios;

scenarios! {
    batches: "
        agent a1 slots=3
        agent a2 slots=2
        # All of them in one entry, and one request: the last event names them.
        batch a,b,c id=r1 keep=10s
        # A retry is no event, also when they have moved on,
        report a1 a 1 running
        batch a,b,c id=r1 keep=10s
        # ... but another one with its id is refused, a batch or not,
        batch a,b id=r1
        create a id=r1
        # One has no room: nothing is made, and the name of the others stays free.
        batch d,e,f id=r2
        create d id=r3
        terminate d
        # With wait it has its place in the queue, and is made.
        batch e,f,g wait=5s id=r4
        # One's name is taken.
        batch b,h id=r5
        # What makes no batch.
        batch h,h id=r5
        batch h,other/i id=r5
        batch h,i strong id=r5
        # The id is remembered as long as any of them lives, and what is gone is still in its answer.
        terminate a
        report a1 #a 1 absent
        terminate b
        report a2 #b 1 absent
        advance 20s
        housekeeping
        batch a,b,c id=r1 keep=10s
        show
        terminate c
        report a1 #c 1 absent
        batch a,b,c id=r1 keep=10s
        advance 11s
        housekeeping
        show
    ";
    streams: "
        agent a1 slots=9
        # A stream is opened first.
        in 1 1 a
        open 1 keep=10s
        # Opened again: nothing was made, so it may be new once more. What comes from before is void.
        open 1 keep=10s
        in 1 1 a opened=3
        in 1 1 a
        in 1 3 c strong
        # The same again is no event; another content is refused.
        in 1 1 a
        in 1 1 b
        # A refusal is not remembered.
        in 1 2 a
        in 1 2 b
        # The client has the answers of 1 and 2: they are forgotten with the next create.
        in 1 4 d below=3
        in 1 2 b below=3
        in 1 1 a below=1
        show
        # Too far ahead.
        in 1 4099 e below=3
        in 1 4098 e below=3
        # It goes on elsewhere: the stream from before is void, and a new client with this id is refused.
        open 1
        open 1 resume below=3 keep=10s
        in 1 5 e opened=4 below=3
        in 1 3 c strong below=3
        # A STRONG create that fails is answered so.
        report a1 c 1 start-failed reason=no_such_image
        in 1 3 c strong below=3
        # Kept, it is remembered, also when its sandboxes are gone.
        terminate d
        report a1 #d 1 absent
        advance 8s
        keep 1 below=4 keep=10s
        keep 1 opened=4 below=4
        advance 8s
        housekeeping
        in 1 4 d below=4
        show
        # Forgotten, it says so.
        advance 3s
        housekeeping
        show
        in 1 6 f below=4
        keep 1
        open 1 resume below=4
        open 1 below=4
        open 2
    ";
    retries_across_streams: "
        # Sequences are a client's, and have nothing to do with request ids nor with other clients.
        agent a1 slots=9
        open 1
        open 2
        in 1 1 a
        in 2 1 a
        in 2 1 b
        create c id=00000000-0000-0000-0000-000000000001
        show
    ";
}
