//! Tests of the core as a whole: scripts for people to read, properties for the machine to search, golden bytes.

mod bounds;
mod bytes;
mod golden;
mod limits;
mod mass_loss;
mod memory;
mod properties;
mod scenarios;
mod scenarios_of_agents;
mod scenarios_of_clusters;
mod scenarios_of_many;
mod script;
mod streams;
mod world;
