//! What a configuration must say, and the sentence for each way of getting it wrong.

use introspect::linux::contain::Means;

use super::*;

const GOOD: &str = r#"[monitor]
name = "monitor-a"
local = "10.77.0.3"
journal = "/tmp/journal"

[[rule]]
sensors = "tick.cpu*"
deadline_ms = 100
raises = "hang"

[[target]]
name = "web"
backdoor = "10.77.0.1:4790"
on_hang = "evacuate"
spare = [{ name = "spare-a", control = "10.77.0.2:4792" }]
service = [{ address = "10.77.0.100", ports = [8080] }]
"#;

fn parsed(text: &str) -> Result<Config, ConfigError> {
    parse(Path::new("m.toml"), text)
}

/// The good file with `old` replaced by `new` is refused with `expected`.
fn check(old: &str, new: &str, expected: &str) {
    assert!(GOOD.contains(old), "{old:?} is not in the file");
    match parsed(&GOOD.replacen(old, new, 1)) {
        Err(error) => assert_eq!(error.to_string(), expected),
        Ok(_) => panic!("{new:?} was accepted"),
    }
}

#[test]
fn the_period_follows_from_the_shortest_deadline() {
    let config = parsed(GOOD).unwrap();
    assert_eq!((config.samples_per_deadline, config.period), (3, PERIOD_MAX));
    let short = parsed(&GOOD.replace("deadline_ms = 100", "deadline_ms = 3")).unwrap();
    assert_eq!(short.period, Duration::from_millis(1));
    assert_eq!(config.targets[0].rules[0].quorum, Quorum::Any);
}

#[test]
fn deadlines_from_a_millisecond_up_are_accepted() {
    for (deadline_ms, period_us) in [(1, 333), (2, 666), (20, 1500), (50, 1500)] {
        let config = parsed(&GOOD.replace("deadline_ms = 100", &format!("deadline_ms = {deadline_ms}"))).unwrap();
        assert_eq!(config.period.as_micros(), period_us, "for {deadline_ms} ms");
        assert_eq!(config.targets[0].rules[0].deadline, Some(Duration::from_millis(deadline_ms)));
    }
}

#[test]
fn a_thread_with_many_targets_gets_the_time_for_their_samples() {
    let mut text = GOOD.replacen("[[rule]]", "threads = 2\n[[rule]]", 1);
    for number in 0..1999 {
        let (high, low) = (number / 256, number % 256);
        text +=
            &format!("[[target]]\nname = \"t{number}\"\nbackdoor = \"10.9.{high}.{low}:4790\"\non_hang = \"report\"\n");
    }
    assert_eq!(parsed(&text).unwrap().period, Duration::from_millis(10));
}

#[test]
fn the_example_file_is_valid_and_names_every_key() {
    let text = include_str!("../../monitor.example.toml");
    let config = parse(Path::new("monitor.example.toml"), text).unwrap();
    assert_eq!(config.targets.len(), 4);
    let verbs = Carrier::Verbs { device: Some("mlx5_0".to_owned()), port: Some(1) };
    assert_eq!((&config.targets[0].carrier, &config.targets[2].carrier), (&Carrier::Soft, &verbs));
    for key in [
        "name",
        "local",
        "journal",
        "metrics",
        "cpu",
        "threads",
        "share",
        "listen",
        "first",
        "silence_ms",
        "period_ms",
        "missed_probability",
        "lost_probability",
        "path_deadline_ms",
        "sensors",
        "deadline_ms",
        "limit",
        "window_ms",
        "quorum",
        "raises",
        "backdoor",
        "on_hang",
        "spare",
        "service",
        "prepare_every_s",
        "evacuation_patience_s",
        "control",
        "address",
        "ports",
        "act",
        "spare_uids",
        "spare_comms",
        "blast_cap",
        "again_s",
        "too_many_procs",
        "rate_too_high",
        "tree_too_deep",
        "max_rss_mib",
        "max_rssuid_mib",
        "max_rssuid_saveuid_mib",
        "only_below_free_mib",
        "agent",
        "kernel_sensor",
        "class",
        "variable",
        "floor",
        "carrier",
        "device",
        "device_port",
    ] {
        assert!(text.contains(key), "the example does not show {key}");
    }
}

#[test]
fn a_carrier_is_one_of_two_and_a_device_is_of_an_adapter() {
    let with = |keys: &str| format!("on_hang = \"report\"\n{keys}");
    let verbs = parsed(&GOOD.replacen("on_hang = \"evacuate\"", &with("carrier = \"verbs\""), 1)).unwrap();
    assert_eq!(verbs.targets[0].carrier, Carrier::Verbs { device: None, port: None });
    let check = |keys: &str, expected: &str| super::tests::check("on_hang = \"evacuate\"", &with(keys), expected);
    check(
        "device = \"rxe0\"",
        "m.toml:15: target.device: has a meaning with carrier = \"verbs\" only; set that or leave this out",
    );
    check(
        "carrier = \"verbs\"\ndevice_port = 0",
        "m.toml:16: target.device_port: ports of adapters are counted from 1",
    );
    check("carrier = \"udp\"", "m.toml:15: target.carrier: unknown variant `udp`, expected `soft` or `verbs`");
}

#[test]
fn a_deadline_that_holds_too_few_samples_is_refused_with_the_fix() {
    check(
        "[[rule]]",
        "[sampling]\nperiod_ms = 40\n[[rule]]",
        "m.toml:10: rule.deadline_ms: 100ms hold fewer than the 3 samples that the probabilities under [sampling] ask \
         for, at a period of 40ms; raise the deadline or set sampling.period_ms to 33.333333 or less",
    );
    check(
        "deadline_ms = 100",
        "deadline_ms = 0.2",
        "m.toml:8: rule.deadline_ms: 200µs need a sampling period of 66.666µs, below the 100µs that are possible; \
         raise the deadline",
    );
}

#[test]
fn an_evacuation_needs_a_spare_and_a_service() {
    check(
        "spare = [{ name = \"spare-a\", control = \"10.77.0.2:4792\" }]",
        "",
        "m.toml:14: target.on_hang: evacuate needs a [[target.spare]]; add one or set on_hang = \"report\"",
    );
    check(
        "service = [{ address = \"10.77.0.100\", ports = [8080] }]",
        "",
        "m.toml:14: target.on_hang: evacuate needs a [[target.service]]; add one or set on_hang = \"report\"",
    );
    check(
        "ports = [8080]",
        "ports = []",
        "m.toml:16: target.service.ports: name the TCP ports that are served at this address, each from 1 to 65535",
    );
}

#[test]
fn names_and_addresses_stand_once() {
    let twice = "[[target]]\nname = \"web\"\nbackdoor = \"10.77.0.9:4790\"\non_hang = \"report\"\n[[target]]";
    check("[[target]]", twice, "m.toml:16: target.name: web stands twice; give each its own");
    let twice = "[[target]]\nname = \"other\"\nbackdoor = \"10.77.0.1:4790\"\non_hang = \"report\"\n[[target]]";
    check("[[target]]", twice, "m.toml:17: target.backdoor: 10.77.0.1:4790 stands twice; give each its own");
    check(
        "spare = [",
        "spare = [{ name = \"b\", control = \"10.77.0.2:4792\" }, ",
        "m.toml:15: target.spare.control: 10.77.0.2:4792 stands twice; give each its own",
    );
    check("\"monitor-a\"", "\" \"", "m.toml:2: monitor.name: empty; give it a name");
}

#[test]
fn a_hang_rule_needs_a_deadline_and_a_target_needs_a_hang_rule() {
    check(
        "deadline_ms = 100\n",
        "",
        "m.toml:7: rule.sensors: a rule that raises a hang needs its own deadline_ms: what a box claims is not enough \
         to act on",
    );
    check(
        "raises = \"hang\"",
        "raises = \"suspicion\"",
        "m.toml:14: target.on_hang: no rule of this target raises a hang; add a [[rule]] with raises = \"hang\" and a \
         deadline_ms",
    );
}

#[test]
fn values_that_mean_nothing_are_refused() {
    check(
        "deadline_ms = 100",
        "deadline_ms = -1",
        "m.toml:8: rule.deadline_ms: -1 is no time here; above 0 and up to a day is",
    );
    check(
        "[[rule]]",
        "[sampling]\nlost_probability = 1.0\n[[rule]]",
        "m.toml:7: sampling.lost_probability: 1 is no probability to reckon with; above 0 and below 1 is",
    );
    check("local = \"10.77.0.3\"", "local = \"10.77.0\"", "m.toml:3: monitor.local: invalid IPv4 address syntax");
    check(
        "on_hang = \"evacuate\"",
        "on_hang = \"pray\"",
        "m.toml:14: target.on_hang: unknown variant `pray`, expected `evacuate` or `report`",
    );
    check("name = \"monitor-a\"\n", "", "m.toml:1: monitor: missing field `name`");
    check(
        "journal =",
        "jornal =",
        "m.toml:4: monitor.jornal: unknown field `jornal`, expected one of \
         `name`, `local`, `journal`, `metrics`, `cpu`, `threads`",
    );
}

#[test]
fn a_monitor_is_the_first_or_the_second_and_says_so_in_one_way() {
    let with = |table: &str| format!("[partner]\n{table}\n[[rule]]");
    check(
        "[[rule]]",
        &with("silence_ms = 500"),
        "m.toml:6: partner: say where this monitor listens (listen, on the first) or where the first one does (first, \
         on the second)",
    );
    check(
        "[[rule]]",
        &with("listen = \"10.77.0.3:4793\"\nfirst = \"10.77.0.5:4793\""),
        "m.toml:6: partner: a monitor is the first (listen) or the second (first), not both",
    );
    check(
        "[[rule]]",
        &with("first = \"10.77.0.5:4793\"\nsilence_ms = 100"),
        "m.toml:6: partner: silence_ms is shorter than three heartbeats of 100 ms; raise it to 300 or more",
    );
    let second = parsed(&GOOD.replace("[[rule]]", &with("first = \"10.77.0.5:4793\""))).unwrap();
    let first = "10.77.0.5:4793".parse().unwrap();
    assert_eq!(second.partner, Partner::Second { first, silence: Duration::from_secs(1) });
}

#[test]
fn spares_share_service_addresses_so_there_must_be_two_of_each() {
    check(
        "on_hang = \"evacuate\"",
        "on_hang = \"evacuate\"\nshare = true",
        "m.toml:15: target.share: sharing needs two spares and two service addresses: an address is never on two \
         machines; add what is missing or leave share out",
    );
}

#[test]
fn more_threads_than_targets_are_refused() {
    check(
        "[[rule]]",
        "threads = 2\n[[rule]]",
        "m.toml:6: monitor.threads: with 1 targets, 1 to 1 threads have something to do",
    );
}

#[test]
fn a_file_without_targets_or_that_cannot_be_read_is_refused() {
    let text = GOOD.split("[[target]]").next().unwrap();
    assert_eq!(
        parsed(text).unwrap_err().to_string(),
        "m.toml: target: no target is named; add a [[target]] table with name, backdoor and on_hang"
    );
    let error = load(Path::new("/nonexistent/m.toml")).unwrap_err().to_string();
    assert_eq!(error, "/nonexistent/m.toml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn a_repair_that_could_do_nothing_or_names_what_is_not_there_is_refused() {
    let with = |repair: &str, expected: &str| {
        check("[[target]]", &format!("[[target]]\n{repair}"), expected);
    };
    let module = |words: &str| format!("repair = {{ module = [{{ {words} }}] }}");
    with(
        "repair = {}",
        "m.toml:12: target.repair: nothing is repaired without a [[target.repair.module]]; add one or leave \
         [target.repair] out",
    );
    with(
        &module("use = \"forkbomb\", sensors = [], too_many_procs = 1"),
        "m.toml:12: target.repair.module.sensors: without a sensor the module is never asked; name those whose leaving \
         their bounds asks for it",
    );
    with(
        &module("use = \"forkbomb\", sensors = [\"tasks\"]"),
        "m.toml:12: target.repair.module: without a policy the module finds nothing; add one, such as \
         too_many_procs or max_rss_mib",
    );
    with(
        &module("use = \"cold\", sensors = [\"tasks\"], too_many_procs = 1"),
        "m.toml:12: target.repair.module.use: no module \"cold\"; there are forkbomb and memhog, and command for \
         your own",
    );
    with(
        &module("use = \"memhog\", sensors = [\"tasks\"], too_many_procs = 1"),
        "m.toml:12: target.repair.module: unknown field `too_many_procs`, expected one of `max_rss_mib`, \
         `max_rssuid_mib`, `max_rssuid_saveuid_mib`, `only_below_free_mib` for memhog",
    );
    with(
        "repair = { blast_cap = 0, module = [{ use = \"forkbomb\", sensors = [\"tasks\"], too_many_procs = 1 }] }",
        "m.toml:12: target.repair.blast_cap: no repair may end a process: set act = false for a dry run, or raise it",
    );
    with(
        "repair = { hook = \"magic\", module = [{ use = \"forkbomb\", sensors = [\"tasks\"], too_many_procs = 1 }] }",
        "m.toml:12: target.repair.hook: unknown variant `magic`, expected one of `raw`, `table`, `auto`",
    );
    let bomb = "module = [{ use = \"forkbomb\", sensors = [\"tasks\"], too_many_procs = 1 }]";
    with(
        &format!("repair = {{ contain = [\"rope\"], {bomb} }}"),
        "m.toml:12: target.repair.contain: unknown variant `rope`, expected one of `nproc`, `pids`, `oom`",
    );
    with(
        &format!("repair = {{ hook = \"table\", contain = [\"oom\"], {bomb} }}"),
        "m.toml:12: target.repair.contain: an order in the kill table contains nobody; set hook to raw or auto, or \
         leave this out",
    );
}

#[test]
fn who_does_not_end_at_once_is_contained_unless_that_is_not_wanted_or_orders_are_the_hook() {
    let check = |words: &str, expected: &[Means]| {
        let module = "module = [{ use = \"forkbomb\", sensors = [\"tasks\"], too_many_procs = 1 }]";
        let text = GOOD.replace("[[target]]", &format!("[[target]]\nrepair = {{ {words} {module} }}"));
        let repair = parsed(&text).unwrap().targets[0].repair.clone().unwrap();
        assert_eq!(repair.contain.into_iter().collect::<Vec<_>>(), expected, "{words}");
    };
    check("", &[Means::Nproc, Means::Oom]);
    check("hook = \"auto\",", &[Means::Nproc, Means::Oom]);
    check("hook = \"table\",", &[]);
    check("contain = [],", &[]);
    check("contain = [\"pids\", \"nproc\"],", &[Means::Nproc, Means::Pids]);
}

#[test]
fn a_module_of_one_s_own_is_a_program_with_settings() {
    let with =
        |words: &str| GOOD.replace("[[target]]", &format!("[[target]]\nrepair = {{ module = [{{ {words} }}] }}"));
    let parse = |words: &str| parsed(&with(words)).map(|config| config.targets[0].repair.clone().unwrap());
    let words = "command = [\"/opt/crowd.py\", \"-v\"], sensors = [\"tasks\"], user = 65534, \
                 settings = { limit = 3, names = [\"a\"], deep = { is = true } }";
    let repair = parse(words).unwrap();
    let Module::Program(outside) = &repair.modules[0].1 else { panic!("{repair:?}") };
    assert_eq!((outside.name.as_str(), outside.user, outside.command.len()), ("crowd.py", Some(65534), 2));
    assert_eq!(
        serde_json::to_string(&outside.settings).unwrap(),
        "{\"deep\":{\"is\":true},\"limit\":3,\"names\":[\"a\"]}"
    );
    assert!(!repair.escalate, "the cure of last resort is asked for");
    let wrong = |words: &str, expected: &str| {
        let error = parse(words).unwrap_err().to_string();
        assert!(error.contains(expected), "{words}: {error}");
    };
    wrong("command = [], sensors = [\"tasks\"]", "name the program by its absolute path, then its arguments");
    wrong("command = [\"crowd.py\"], sensors = [\"tasks\"]", "name the program by its absolute path");
    wrong("sensors = [\"tasks\"], limit = 3", "a module is one of this build (use) or a program of your own");
    wrong("use = \"memhog\", command = [\"/a\"], sensors = [\"tasks\"]", "say one of the two");
    wrong(
        "command = [\"/a\"], sensors = [\"tasks\"], limit = 3",
        "unknown field `limit`, expected one of `name`, `user`, `settings` for a program; what it is to know goes into \
         settings",
    );
}

#[test]
fn a_dry_run_neither_fences_nor_writes() {
    let text = include_str!("../../monitor.example.toml");
    let mut config = parse(Path::new("monitor.example.toml"), text).unwrap();
    assert!(config.targets[0].repair.as_ref().unwrap().act && config.targets[0].on_hang == OnHang::Evacuate);
    config.touch_nothing();
    assert!(config.targets.iter().all(|target| target.on_hang == OnHang::Report));
    assert!(config.targets.iter().filter_map(|target| target.repair.as_ref()).all(|repair| !repair.act));
}

/// The good file with its target having no agent, and these kernel sensors.
fn without_agent(sensors: &str) -> (String, String) {
    let table = format!("[[target]]\nagent = false\nkernel_sensor = [{sensors}]");
    let rule = "[[rule]]\nsensors = \"TICKS.cpu*\"\ndeadline_ms = 100\nraises = \"hang\"\n";
    (table, format!("{rule}\n[[rule]]"))
}

#[test]
fn a_target_without_an_agent_has_kernel_sensors_and_a_rule_that_sees_it_hang() {
    let (table, rules) = without_agent("{ name = \"TICKS\" }, { name = \"NPROCS\" }");
    let text = GOOD.replacen("[[target]]", &table, 1).replacen("[[rule]]", &rules, 1);
    let target = &parsed(&text).unwrap().targets[0];
    assert_eq!((target.agent, target.kernel_sensors.len()), (false, 2));
    assert!(parsed(GOOD).unwrap().targets[0].agent);
    let own = "{ name = \"beat\", class = \"progress\", variable = \"jiffies\" }";
    let (table, _) = without_agent(own);
    let text = GOOD.replacen("[[target]]", &table, 1).replacen("tick.cpu*", "beat", 1);
    assert_eq!(parsed(&text).unwrap().targets[0].kernel_sensors[0].name, "beat");
    check(
        "[[target]]",
        "[[target]]\nagent = false\nkernel_sensor = [{ name = \"TICKS\" }]",
        "m.toml:12: target.agent: without an agent only kernel sensors can show a hang, and no rule that raises one \
         fits any; add a [[target.kernel_sensor]] with name = \"TICKS\" and a rule for \"TICKS.cpu*\"",
    );
}

#[test]
fn a_kernel_sensor_that_is_nothing_to_read_is_refused() {
    let with = |sensor: &str, expected: &str| {
        check("[[target]]", &format!("[[target]]\nkernel_sensor = [{sensor}]"), expected);
    };
    with(
        "{ name = \"NPROC\" }",
        "m.toml:12: target.kernel_sensor.name: no ready-made sensor \"NPROC\"; there are NPROCS, MAXPROCS_PERUID, \
         MAXPROCRATE_PERUID, FORKS, OOM_KILLER_RUNNING, OOM_KILLS, FREE_PAGES, AVAILABLE_PAGES, CONTEXT_SWITCHES, \
         TIMER_INTERRUPTS, TICKS, SWITCHES. Or say which variable it is (variable) and its class",
    );
    with(
        "{ name = \"NPROCS\", class = \"level\" }",
        "m.toml:12: target.kernel_sensor: NPROCS is ready-made and has its class; leave class and floor out, or add \
         variable",
    );
    with(
        "{ name = \"dirty\", class = \"level\", variable = \"vm_node_stat[NR\" }",
        "m.toml:12: target.kernel_sensor.variable: \"vm_node_stat[NR\": expected `]`, found ``; an example: \
         runqueues.nr_switches",
    );
    with(
        "{ name = \"dirty\", variable = \"vm_node_stat[NR_FILE_DIRTY]\" }",
        "m.toml:12: target.kernel_sensor.class: say how it is judged: class = \"progress\", \"level\" or \"pressure\"",
    );
    with(
        "{ name = \"x\", class = \"pressure\", variable = \"x\", floor = true }",
        "m.toml:12: target.kernel_sensor.floor: has a meaning with class = \"level\" only; leave it out",
    );
    with(
        "{ name = \"SLEEP.cpu0\", class = \"level\", variable = \"x\" }",
        "m.toml:12: target.kernel_sensor.name: SLEEP is made by itself, of what progress sensors need; choose another \
         name",
    );
    with(
        "{ name = \"FORKS\" }, { name = \"FORKS\" }",
        "m.toml:12: target.kernel_sensor.name: FORKS stands twice; give each its own name",
    );
}
