//! Compiles the .proto files without `protoc`, and keeps the descriptor set for reflection and JSON.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message;

const FILES: [&str; 7] = [
    "sandkeeper/v1/common.proto",
    "sandkeeper/v1/sandbox.proto",
    "sandkeeper/v1/event.proto",
    "sandkeeper/v1/fleet.proto",
    "sandkeeper/v1/agent.proto",
    "sandkeeper/v1/cluster.proto",
    "sandkeeper/internal/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=sandkeeper");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // tonic-prost-build ignores `file_descriptor_set_path` when it is given compiled descriptors.
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".sandkeeper.internal.v1")
        .btree_map(".sandkeeper")
        // The generated `connect` of a transport would clash with AgentService.Connect; clients take a channel.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
