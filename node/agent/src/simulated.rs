//! Many simulated agents in one process, over shared connections: for capacity planning and load tests.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::{self, Network};
use crate::config::{AgentConfig, RuntimeConfig};
use crate::error::AgentError;
use crate::runtime::simulated::Simulated;
use crate::session::{Connections, Directory, STREAMS_PER_CONNECTION};

/// Exits of one simulated agent that wait at most for its loop.
const EXITS: usize = 16;
/// How far the first hellos of many agents are spread.
const SPREAD: Duration = Duration::from_secs(1);

/// Runs the agents that `config` asks for until `token` is cancelled (then `Ok`), or until one of them can't go on: then
/// all end with its error. With more than one, agent i is `{agent_id}-{i}` and has the folder of that name.
pub async fn run(config: AgentConfig, token: CancellationToken) -> Result<(), AgentError> {
    agent::check(&config)?;
    let RuntimeConfig::Simulated(simulated) = config.runtime.clone() else {
        return Err(AgentError::Config("only the runtime \"simulated\" runs many agents".to_owned()));
    };
    let token = token.child_token();
    let (directory, look_up) = Directory::new(config.servers.clone(), token.clone());
    let looking = tokio::spawn(look_up);
    let network = Network { connections: Arc::new(Connections::new(STREAMS_PER_CONNECTION)), directory };
    let mut agents = JoinSet::new();
    for index in 0..simulated.count {
        let (token, network, simulated) = (token.clone(), network.clone(), simulated.clone());
        let mut config = config.clone();
        if simulated.count > 1 {
            config.agent_id = format!("{}-{index}", config.agent_id);
            config.data_dir = config.data_dir.join(&config.agent_id);
        }
        agents.spawn(async move {
            if simulated.count > 1 {
                let wait = SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
                tokio::select! {
                    () = token.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
            }
            let ledger = agent::open_ledger(&config).await?;
            let (exits, exited) = mpsc::channel(EXITS);
            let runtime = Simulated::new(&simulated, index as u64, exits);
            agent::drive(config, ledger, runtime, exited, network, token.child_token()).await
        });
    }
    let mut first_error = Ok(());
    while let Some(ended) = agents.join_next().await {
        let result = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        // One that ends takes the others with it: half a fleet would be a wrong measurement.
        token.cancel();
        first_error = first_error.and(result);
    }
    looking.abort();
    first_error
}
