//! Whether a sandbox fits, by what the agent itself knows.

use super::State;
use crate::config::Capacity;
use crate::table::Order;

/// Why `order` does not fit beside all other sandboxes; `None` if it does. An older generation of the same sandbox does
/// not count: it is gone before this one starts.
pub(super) fn obstacle(state: &State, order: &Order) -> Option<String> {
    let spec = &order.spec;
    let used = state.table.used_by_others(&spec.sandbox_id);
    let (needs, total) = (spec.needs(), state.capacity);
    let fits = |pick: fn(&Capacity) -> u64| {
        pick(&used).checked_add(pick(&needs)).is_some_and(|sum| sum <= pick(&total))
    };
    if !fits(|c| c.slots) {
        return Some(format!("no slot is free: {} of {} are taken", used.slots, total.slots));
    }
    if needs.cpu_millis > 0 && !fits(|c| c.cpu_millis) {
        return Some(format!(
            "not enough CPU: {}m are wanted, {}m of {}m are taken",
            needs.cpu_millis, used.cpu_millis, total.cpu_millis
        ));
    }
    if needs.memory_bytes > 0 && !fits(|c| c.memory_bytes) {
        return Some(format!(
            "not enough memory: {} bytes are wanted, {} of {} are taken",
            needs.memory_bytes, used.memory_bytes, total.memory_bytes
        ));
    }
    spec.ports.iter().find_map(|port| {
        let holder = state.table.port_holder(*port).filter(|holder| *holder != spec.sandbox_id)?;
        Some(format!("port {port} is taken by {holder}"))
    })
}
