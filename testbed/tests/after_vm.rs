//! The whole way back with a real virtual machine: its kernel panics, its sessions are carried over; it is looked at,
//! reset behind its fence and given its address back, and nobody is refused or reset, neither the old clients nor new
//! ones.

mod scenario;

use scenario::Out;
use serde_json::Value;

#[test]
fn a_rescued_machine_is_inspected_reset_and_gets_its_address_back_without_a_lost_client() {
    let out = Out::named("rescue-and-return");
    let result = out.run(&["rescue-and-return", "--fault", "panic", "--sessions", "4", "--deadline-ms", "300"]);
    let count = |name: &str| result[name].as_u64();
    assert_eq!(result["pass"], true, "{result}");
    assert_eq!((count("recovered"), count("lost"), count("new_failed")), (Some(4), Some(0), Some(0)), "{result}");
    assert_eq!(count("wrong_bytes"), Some(0), "{result}");
    assert!(count("new_requests") > Some(50), "{result}");

    // What an operator saw: why it panicked, who had connections, and that nothing moved meanwhile.
    let inspection = out.json("inspect.json");
    assert_eq!(inspection["fenced"], true);
    assert_eq!(inspection["damage"], Value::Array(vec![]), "{}", inspection["damage"]);
    let texts: Vec<_> =
        inspection["log"].as_array().expect("a log").iter().filter_map(|it| it["text"].as_str()).collect();
    assert!(texts.iter().any(|text| text.contains("sysrq triggered crash")), "{texts:?}");
    assert!(inspection["sockets"].as_array().is_some_and(|sockets| sockets.len() >= 4), "{inspection}");
    assert!(inspection["current"][0]["pid"].as_u64() > Some(0), "the shell that wrote `c`: {}", inspection["current"]);

    // Each step in its order, once.
    let timeline = out.text("timeline.txt");
    let steps = [
        "fenced, epoch",
        "evacuated to",
        "reset behind",
        "the target is back",
        "gave the addresses back",
        "fence ended",
    ];
    let places: Vec<_> = steps.iter().map(|step| timeline.find(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{timeline}");
}
