//! What is done to agents. The guards of their sandboxes are left alone.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::Fault;
use super::pause::is_stopped;
use crate::chaos::rig::Rig;
use crate::{Party, Process, Quality};

/// kill -9, and a new start.
#[derive(Default)]
pub(super) struct Kill {
    agent: Option<usize>,
    gone: bool,
}

impl Fault for Kill {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        let agent = rig.some_agent();
        self.agent = Some(agent);
        let pid = rig.cluster.agents[agent].process.as_ref().map(Process::pid);
        block_in_place(|| rig.cluster.kill_agent(agent));
        self.gone = pid.is_some_and(|pid| !crate::alive(pid.cast_signed()));
        futures::future::ready(Ok(())).boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        if let Some(agent) = self.agent {
            rig.cluster.start_agent(agent);
        }
        futures::future::ready(Ok(self.gone)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        100..9_000
    }
}

/// SIGSTOP, and SIGCONT.
#[derive(Default)]
pub(super) struct Pause {
    agent: Option<usize>,
}

impl Fault for Pause {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        let agent = rig.some_agent();
        self.agent = Some(agent);
        if let Some(process) = &rig.cluster.agents[agent].process {
            process.signal(Signal::SIGSTOP);
        }
        futures::future::ready(Ok(())).boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        let process = self.agent.and_then(|agent| rig.cluster.agents[agent].process.as_ref());
        let slept = process.is_some_and(|process| is_stopped(process.pid()));
        if let Some(process) = process {
            process.signal(Signal::SIGCONT);
        }
        futures::future::ready(Ok(slept)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        1_000..30_000
    }
}

/// Which way nothing gets through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Both,
    FromAgent,
    ToAgent,
}

/// An agent is cut off from all nodes.
pub(super) struct Cut {
    way: Way,
    agent: usize,
    before: u64,
}

impl Cut {
    pub(super) fn of(way: Way) -> Self {
        Self { way, agent: 0, before: 0 }
    }
}

/// Gives all links of an agent this way a quality.
fn set(rig: &Rig, agent: usize, way: Way, quality: Quality) {
    let agent = Party::Agent(agent);
    rig.links().change(|weather| {
        for node in (0..rig.cluster.nodes.len()).map(Party::Node) {
            if !matches!(way, Way::ToAgent) {
                weather.insert((agent, node), quality);
            }
            if !matches!(way, Way::FromAgent) {
                weather.insert((node, agent), quality);
            }
        }
    });
}

impl Fault for Cut {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        self.agent = rig.some_agent();
        self.before = rig.held();
        set(rig, self.agent, self.way, Quality { cut: true, ..Quality::default() });
        futures::future::ready(Ok(())).boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        let proved = rig.held() > self.before;
        set(rig, self.agent, Way::Both, Quality::default());
        futures::future::ready(Ok(proved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        1_000..9_000
    }
}

/// What nodes say comes late, and then what the agent says does not come at all: its lease must not run from when it was
/// told of it.
#[derive(Default)]
pub(super) struct Late {
    agent: usize,
    before: u64,
}

impl Fault for Late {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            self.agent = rig.some_agent();
            self.before = rig.held();
            let delay = rig.some_time(2_000..3_500);
            set(rig, self.agent, Way::ToAgent, Quality { delay, ..Quality::default() });
            sleep(delay + Duration::from_secs(1)).await;
            set(rig, self.agent, Way::FromAgent, Quality { cut: true, ..Quality::default() });
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        let proved = rig.held() > self.before;
        set(rig, self.agent, Way::Both, Quality::default());
        futures::future::ready(Ok(proved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        6_000..10_000
    }
}

/// All agents lose their connections at once, again and again.
pub(super) struct Storm;

impl Storm {
    fn broken(rig: &Rig) -> u64 {
        rig.links().tally().broken.load(Ordering::Relaxed)
    }
}

impl Fault for Storm {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let before = Self::broken(rig);
            let agents: Vec<_> = (0..rig.vulnerable_agents()).map(Party::Agent).collect();
            for _ in 0..4 {
                rig.links().break_connections(agents.clone());
                let pause = rig.some_time(100..800);
                sleep(pause).await;
            }
            anyhow::ensure!(Self::broken(rig) > before, "no connection was broken");
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, _: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        // Breaking was all, and is over: `inject` has seen it.
        futures::future::ready(Ok(true)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        0..500
    }
}
