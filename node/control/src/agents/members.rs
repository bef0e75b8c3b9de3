//! Where the control nodes are, for the agents: so that one that joins later has their sessions before it leads.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::replica::{Replica, View};

/// The API addresses of all members, now and whenever they change; and the task that follows them until `stop`.
pub fn follow(
    replica: &Replica,
    stop: CancellationToken,
) -> (watch::Receiver<Vec<String>>, impl Future<Output = ()> + Send + 'static) {
    let (sender, members) = watch::channel(addresses(&replica.view()));
    let mut views = replica.subscribe();
    let mut seen = *replica.view().membership.log_id();
    let task = async move {
        loop {
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                view = views.wait_for(|view| *view.membership.log_id() != seen) => match view {
                    Ok(view) => {
                        seen = *view.membership.log_id();
                        addresses(&view)
                    }
                    Err(_) => return,
                },
            };
            sender.send_if_modified(|known| {
                let news = *known != changed;
                *known = changed;
                news
            });
        }
    };
    (members, task)
}

fn addresses(view: &View) -> Vec<String> {
    view.membership.nodes().map(|(_, member)| member.api_address.clone()).collect()
}
