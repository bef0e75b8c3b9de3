//! Limits on what a caller may ask for: each a constant with its reason, all checked before anything is decided.

use crate::command::CreateSandbox;
use crate::spec::{AgentSpec, Labels};

/// The most environment variables of a sandbox.
pub const MAX_ENVS: usize = 128;
/// The most bytes of all environment variables together: below what execve(2) takes, and a bound for the log.
pub const MAX_ENV_BYTES: usize = 64 * 1024;
/// The most labels of a sandbox or an agent, and the most terms of a selector.
pub const MAX_LABELS: usize = 64;
/// The most bytes of a label's key or value.
pub const MAX_LABEL_TEXT_BYTES: usize = 256;
/// The most elements of command and args together.
pub const MAX_ARGS: usize = 256;
/// The most bytes of command and args together: below what execve(2) takes with the environment.
pub const MAX_ARG_BYTES: usize = 64 * 1024;
/// The most bytes of an image reference or working directory (PATH_MAX).
pub const MAX_TEXT_BYTES: usize = 4096;
/// The most ports of a sandbox.
pub const MAX_PORTS: usize = 16;
/// The most CPU of an agent or sandbox, thousandths: 65,536 CPUs. With the limit on agents, sums stay below 2^64.
pub const MAX_CPU_MILLIS: u64 = 65_536_000;
/// The most memory of an agent or sandbox, bytes: 64 TiB. With the limit on agents, sums stay below 2^64.
pub const MAX_MEMORY_BYTES: u64 = 1 << 46;
/// The most slots of an agent: beyond what one machine runs, and a bound for what its loss or removal brings.
pub const MAX_SLOTS: u64 = 4096;
/// The most agents.
pub const MAX_AGENTS: usize = 100_000;
/// The most sandboxes that wait for capacity: beyond that, waiting is no help to anyone.
pub const MAX_WAITING: usize = 10_000;
/// The most remembered requests: some hundred megabytes. A batch counts as many as it made, and each answer that a client
/// of a stream has not acknowledged counts too.
pub const MAX_REQUESTS: usize = 1_000_000;
/// The most creates of a batch: they share one entry, and some milliseconds of deciding.
pub const MAX_BATCH_CREATES: usize = 1_000;
/// How far a client of a stream may be ahead of what it has acknowledged: a tenth of a second of creates at 40,000 a
/// second, and a bound for what is remembered of one client.
pub const STREAM_WINDOW: u64 = 4_096;
/// The most clients of streams that are remembered: each takes some hundred bytes beside its answers.
pub const MAX_STREAM_CLIENTS: usize = 10_000;
/// The most acknowledged answers of a client that one of its creates forgets: more than it adds, so that they get fewer,
/// and few, so that an entry of thousands of creates takes milliseconds to fold.
pub(crate) const FORGOTTEN_A_CREATE: usize = 16;
/// The longest time to live, wait for capacity and retention of a request, nanoseconds: ten years.
pub const MAX_DURATION_NANOS: i64 = 10 * 365 * 24 * 3600 * 1_000_000_000;
/// The longest recovery timeout, seconds: one day.
pub const MAX_RECOVERY_TIMEOUT_SECONDS: u32 = 24 * 3600;
/// The recovery timeout of those that name none, seconds.
pub const DEFAULT_RECOVERY_TIMEOUT_SECONDS: u32 = 60;
/// The shortest recovery timeout, seconds. It is the length of the lease too: an agent speaks every second, an election
/// takes half a second, and whatever guards the sandbox ends it some 0.6 s before the lease is over. A shorter one would
/// end healthy sandboxes.
pub const MIN_RECOVERY_TIMEOUT_SECONDS: u32 = 5;
/// The most events that one housekeeping command (expiry, loss of an agent, waking of those that wait) makes at
/// once, so that callers' commands are not held up behind it; the leader asks again until nothing is left.
pub const MAX_HOUSEKEEPING_EVENTS: usize = 500;
/// The most shapes that sandboxes wait with: each release of an agent asks the first of every shape whether it fits.
pub const MAX_WAITING_SHAPES: usize = 1_000;
/// How many requests are remembered beyond [`MAX_REQUESTS`] if they are not creates: a table that is full of what live
/// sandboxes hold must not keep anyone from terminating them.
pub const RESERVED_REQUESTS: usize = 100_000;
/// The most bytes of a reason (an agent's, an operator's, our own); what is longer is cut.
pub const MAX_REASON_BYTES: usize = 1024;
/// The most bytes of a caller's name in an event; what is longer is cut.
pub const MAX_ACTOR_BYTES: usize = 256;
/// The most bytes of an endpoint: an agent's host (see [`MAX_LABEL_TEXT_BYTES`]), ':' and a port. Agents' reports of
/// longer ones, or of more than [`MAX_PORTS`], are cut to what is within.
pub const MAX_ENDPOINT_BYTES: usize = MAX_LABEL_TEXT_BYTES + 6;
/// The most bytes that the events of one command about many sandboxes (a loss, a removal) take, but for the last
/// sandbox's: a small part of an entry, and enough for 4,096 sandboxes with usual names.
pub const MAX_BULK_BYTES: usize = 640 * 1024;
/// The most bytes that the events of any one command take, with the allocations that they make possible.
pub const MAX_DECISION_BYTES: usize = 768 * 1024;
/// The most bytes that the events of one adoption take, but for the last sandbox's: with the largest one (64 KiB of
/// environment, 64 KiB of arguments, labels) they stay below [`MAX_DECISION_BYTES`].
pub const MAX_ADOPTION_BYTES: usize = 512 * 1024;
/// The most sandboxes that one answer about unknown ones names: some 200 KiB.
pub const MAX_UNKNOWN_TOLD: usize = 1_000;
/// The most pairs of a waiting shape and an agent that one housekeeping command compares: some milliseconds.
pub const MAX_PLACEMENT_CHECKS: usize = 200_000;
/// How often a sandbox is moved because agents refuse it before it is called failed.
pub const MAX_REFUSALS: u64 = 8;

/// A text of at most `most` bytes: cut at the end of a character, if it is longer.
pub(crate) fn bounded(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Violation {
    /// The field, as the API names it.
    pub field: String,
    /// What is wrong, and what would be right.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

struct Checker(Vec<Violation>);

impl Checker {
    fn at_most(&mut self, field: &str, what: &str, value: u64, most: u64) {
        if value > most {
            self.0.push(Violation::new(field, format!("at most {most} {what}, has {value}")));
        }
    }

    fn recovery_timeout(&mut self, seconds: u32) {
        let (least, most) = (MIN_RECOVERY_TIMEOUT_SECONDS, MAX_RECOVERY_TIMEOUT_SECONDS);
        let description = || format!("{least} to {most} seconds, has {seconds}");
        if !(least..=most).contains(&seconds) {
            self.0.push(Violation::new("recovery_timeout_seconds", description()));
        }
    }

    fn require(&mut self, holds: bool, field: &str, description: &str) {
        if !holds {
            self.0.push(Violation::new(field, description));
        }
    }

    fn labels(&mut self, field: &str, labels: &Labels) {
        self.at_most(field, "entries", labels.len() as u64, MAX_LABELS as u64);
        for (key, value) in labels {
            self.require(!key.is_empty(), field, "a key must not be empty");
            let longest = key.len().max(value.len()) as u64;
            self.at_most(field, "bytes in a key or value", longest, MAX_LABEL_TEXT_BYTES as u64);
        }
    }

    fn done(self) -> Result<(), Vec<Violation>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// Checks a create against all limits.
///
/// # Errors
/// Every violation.
pub fn check_create(create: &CreateSandbox) -> Result<(), Vec<Violation>> {
    let mut check = Checker(Vec::new());
    let spec = &create.spec;
    check.at_most("envs", "variables", spec.envs.len() as u64, MAX_ENVS as u64);
    let bytes: usize = spec.envs.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    check.at_most("envs", "bytes in all", bytes as u64, MAX_ENV_BYTES as u64);
    for (key, value) in &spec.envs {
        let good = !key.is_empty() && !key.contains(['=', '\0']) && !value.contains('\0');
        check.require(good, "envs", "a name must not be empty nor contain '='; neither part may contain NUL");
    }
    let args = || spec.command.iter().chain(&spec.args);
    check.at_most("args", "elements with command", args().count() as u64, MAX_ARGS as u64);
    let bytes: usize = args().map(|arg| arg.len() + 1).sum();
    check.at_most("args", "bytes with command", bytes as u64, MAX_ARG_BYTES as u64);
    check.require(!args().any(|arg| arg.contains('\0')), "args", "must not contain NUL");
    check.at_most("image", "bytes", spec.image.len() as u64, MAX_TEXT_BYTES as u64);
    check.at_most("working_dir", "bytes", spec.working_dir.len() as u64, MAX_TEXT_BYTES as u64);
    check.require(!spec.working_dir.contains('\0'), "working_dir", "must not contain NUL");
    let relative = spec.working_dir.is_empty() || spec.working_dir.starts_with('/');
    check.require(relative, "working_dir", "must be an absolute path");
    check.at_most("exposed_ports", "ports", spec.ports.len() as u64, MAX_PORTS as u64);
    check.require(!spec.ports.contains(&0), "exposed_ports", "a port is 1 to 65535");
    let mut ports = spec.ports.clone();
    ports.sort_unstable();
    let twice = ports.windows(2).any(|pair| pair[0] == pair[1]);
    check.require(!twice, "exposed_ports", "a port must not be named twice");
    check.at_most("resources.cpu_millis", "thousandths", spec.resources.cpu_millis, MAX_CPU_MILLIS);
    check.at_most("resources.memory_bytes", "bytes", spec.resources.memory_bytes, MAX_MEMORY_BYTES);
    check.labels("labels", &create.labels);
    check.labels("agent_selector", &spec.agent_selector);
    check.recovery_timeout(create.recovery_timeout_seconds);
    if let Some(crate::command::Expiry::After(nanos)) = create.expiry {
        check.require(
            (1..=MAX_DURATION_NANOS).contains(&nanos),
            "ttl",
            "must be more than 0 and at most ten years",
        );
    }
    if let Some(nanos) = create.wait {
        let good = (1..=MAX_DURATION_NANOS).contains(&nanos);
        check.require(good, "capacity_timeout", "must be more than 0 and at most ten years");
    }
    check.done()
}

/// Checks the labels of an update.
///
/// # Errors
/// Every violation.
pub fn check_update(update: &crate::event::SandboxUpdate) -> Result<(), Vec<Violation>> {
    let mut check = Checker(Vec::new());
    if let Some(labels) = &update.labels {
        check.labels("labels", labels);
    }
    if let Some(timeout) = update.recovery_timeout_seconds {
        check.recovery_timeout(timeout);
    }
    check.done()
}

/// Checks what an agent says of itself.
///
/// # Errors
/// Every violation.
pub fn check_agent(agent: &AgentSpec) -> Result<(), Vec<Violation>> {
    let mut check = Checker(Vec::new());
    check.require(agent.capacity.slots > 0, "capacity.slots", "must be at least 1");
    check.at_most("capacity.slots", "slots", agent.capacity.slots, MAX_SLOTS);
    check.at_most("capacity.cpu_millis", "thousandths", agent.capacity.cpu_millis, MAX_CPU_MILLIS);
    check.at_most("capacity.memory_bytes", "bytes", agent.capacity.memory_bytes, MAX_MEMORY_BYTES);
    check.labels("labels", &agent.labels);
    for (field, text) in [("runtime", &agent.runtime), ("version", &agent.version), ("host", &agent.host)] {
        check.at_most(field, "bytes", text.len() as u64, MAX_LABEL_TEXT_BYTES as u64);
    }
    check.require(agent.incarnation.start > 0, "incarnation.start", "must be at least 1");
    check.done()
}
