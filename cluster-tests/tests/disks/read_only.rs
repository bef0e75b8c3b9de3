//! A file system that the kernel makes read-only after an error.

use test_disks::{FileSystem, LoopDisk};

use super::{Load, all_is_well, on_own_disk};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_node_whose_disk_becomes_read_only_stops_and_starts_again_when_it_is_mended() {
    let disk = LoopDisk::new(FileSystem::Ext4, 300 << 20);
    let (mut cluster, _data_dirs) = on_own_disk(&disk, &[]).await;
    let load = Load::start(&cluster.client());
    load.goes_on(50).await;
    disk.make_read_only();
    let (code, said) = cluster.wait_ended(0).await;
    assert_eq!(code, Some(1), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    println!("{error}");
    // A write is refused; or an fsync fails, of what was written just before.
    let why = ["Read-only file system", "Input/output error"].into_iter().find(|why| error.contains(why));
    assert!(
        error.contains("stopped because of a fault") && error.contains("/n0/log/") && why.is_some(),
        "{error}"
    );
    load.goes_on(50).await;
    cluster.start_node(0);
    let (code, said) = cluster.wait_ended(0).await;
    assert_eq!(code, Some(1), "{said}");
    let error = cluster.log_of(0).lines().rfind(|line| line.starts_with("error: ")).unwrap().to_owned();
    println!("{error}");
    for part in ["/n0", "Read-only file system", "start the node again"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
    disk.remount();
    cluster.start_node(0);
    all_is_well(&cluster, load).await;
}
