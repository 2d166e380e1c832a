//! The record outlives whoever keeps it: what the store says is so whoever was killed, the folders have all that the database has,
//! and several harnesses decide as one. With real processes.

#[path = "support/rights.rs"]
mod rights;
#[path = "support/sweep_project.rs"]
mod sweep_project;

use fathom::run::read_store;
use fathom::store::Store;
use fathom_spec::record::{EventKind, RunPaths, read_events};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rights::without_rights;
use rusqlite::types::Value as SqlValue;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use sweep_project::{Project, exits, scripted, signal, text, until, workers};

const ONE: &str = "set: { train.learning_rate: 0.1 }\n";

/// Answered once a run's first step is in the store.
const STEPS: &str = "SELECT status FROM v_runs WHERE step > 0";

/// What `fathom` prints on a project.
#[track_caller]
fn fathom(project: &Project, arguments: &[&str]) -> String {
    let output = project.fathom(&scripted(), arguments).output().unwrap();
    exits(&output, 0);
    text(&output.stdout) + &text(&output.stderr)
}

/// The rows of a query, as `fathom sql` gives them.
#[track_caller]
fn sql(project: &Project, query: &str) -> Vec<String> {
    let csv = fathom(project, &["sql", query, "--format", "csv"]);
    csv.lines().skip(1).map(str::to_string).collect()
}

/// Whether a query has this one answer by now; the store may not be there yet.
fn says(project: &Project, query: &str, answer: &str) -> bool {
    let output = project.fathom(&scripted(), &["sql", query, "--format", "csv"]).output().unwrap();
    text(&output.stdout).lines().skip(1).eq([answer])
}

fn begin(project: &Project, worker: &Path, more: &[&str]) -> Child {
    let arguments = [&["sweep", "run", "s.yaml", "--no-report"], more].concat();
    project.fathom(worker, &arguments).env("SCRIPT_STEP_MS", "100").spawn().unwrap()
}

/// Ends a harness and its workers at once, and waits until they are gone.
fn crash(project: &Project, mut harness: Child) {
    signal(&harness, Signal::SIGKILL);
    for pid in workers(project) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    harness.wait().unwrap();
    until("the workers are gone", || workers(project).is_empty());
}

fn folders(project: &Project) -> Vec<RunPaths> {
    let entries = fs::read_dir(project.results().join("runs")).unwrap();
    entries.map(|entry| RunPaths::new(entry.unwrap().path())).collect()
}

/// The first question after the kill is answered rightly, by whichever command it is asked.
#[test]
fn a_killed_harness_leaves_no_run_called_running() {
    const STATUS: &str = "SELECT status, status_detail FROM v_runs";
    for first in ["sql", "runs", "report", "export"] {
        let project = Project::new();
        project.sweep(ONE);
        let harness = begin(&project, &scripted(), &[]);
        until("a step is in the store", || says(&project, STEPS, "running"));
        crash(&project, harness);
        match first {
            "sql" => {}
            "runs" => {
                let said = fathom(&project, &["runs", "ls"]);
                assert!(said.contains("lost") && !said.contains("running"), "{said}");
            }
            "report" => {
                fathom(&project, &["report", "s", "--allow-partial"]);
                let csv = fs::read_to_string(project.path("reports/s/runs.csv")).unwrap();
                assert!(csv.contains(",lost,") && !csv.contains("running"), "{csv}");
            }
            _ => {
                let out = project.path("out");
                fathom(
                    &project,
                    &["export", "mlflow", "--sweep", "s", "--output", out.to_str().unwrap()],
                );
            }
        }
        let store = Store::open_read_only(&project.results()).unwrap();
        let stored = fathom::cli::sql::answer(&store, STATUS).unwrap();
        if first != "sql" {
            let csv = stored.render(fathom::cli::table::Format::Csv);
            assert!(csv.contains("lost,"), "`{first}` has set it right for all: {csv}");
        }
        let [said] = &sql(&project, STATUS)[..] else { panic!("one run") };
        assert!(said.starts_with("lost,\"no ending was logged, and process "), "{said}");
        // All that was logged is there, and the attempt has the same word.
        let logged = read_events(&folders(&project)[0].events(), 0).unwrap().0;
        let last = logged.iter().rev().find_map(|event| match event.kind {
            EventKind::Step { step, .. } => Some(step),
            _ => None,
        });
        let attempts = sql(&project, "SELECT status, step FROM v_attempts");
        assert_eq!(attempts, [format!("lost,{}", last.unwrap())]);
        // And it goes on.
        exits(&project.run(&scripted()), 0);
        assert_eq!(sql(&project, "SELECT status FROM v_runs"), ["finished"]);
        assert_eq!(sql(&project, "SELECT status FROM v_attempts"), ["lost", "finished"]);
    }
}

/// A worker that has not logged anything yet has its run, and loses it.
#[test]
fn a_run_is_running_before_its_worker_says_so() {
    let project = Project::new();
    project.sweep(ONE);
    let silent = project.path("silent.sh");
    fs::write(&silent, "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&silent, fs::Permissions::from_mode(0o755)).unwrap();
    let harness = begin(&project, &silent, &[]);
    let status = "SELECT status, attempt FROM runs";
    until("it is running", || says(&project, status, "running,0"));
    let mut harness = harness;
    signal(&harness, Signal::SIGKILL);
    harness.wait().unwrap();
    // Its worker is sent SIGTERM by the kernel; nobody holds the run when it is gone.
    until("the worker is gone", || !fathom::run::is_held(&folders(&project)[0]));
    assert_eq!(sql(&project, status), ["lost,0"]);
    exits(&project.run(&scripted()), 0);
    assert_eq!(sql(&project, status), ["finished,1"]);
}

/// Who may not write sees the same, and writes nothing.
#[test]
fn who_may_only_read_sees_how_things_stand() {
    let project = Project::new();
    project.sweep(ONE);
    let harness = begin(&project, &scripted(), &[]);
    until("a step is in the store", || says(&project, STEPS, "running"));
    crash(&project, harness);
    let results = project.results();
    let paths = folders(&project).remove(0);
    let allow = |mode: u32| {
        let files = fs::read_dir(&results).unwrap().map(|file| file.unwrap().path());
        let files: Vec<PathBuf> = files.filter(|file| file.is_file()).collect();
        for path in [&results, &paths.folder].into_iter().chain(&files) {
            let bits = if path.is_dir() { mode | 0o111 } else { mode };
            fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
        }
    };
    fs::set_permissions(project.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let bytes = fs::read(Store::path(&results)).unwrap();
    allow(0o444);
    let csv = without_rights(|| {
        let store = read_store(&results).unwrap();
        let rows = "SELECT r.status, a.status, r.status_detail FROM v_runs r JOIN v_attempts a USING (run_id)";
        let refused = store.connection().execute("DELETE FROM runs", []);
        assert!(refused.is_err(), "it is there to be read");
        fathom::cli::sql::answer(&store, rows).unwrap().render(fathom::cli::table::Format::Csv)
    });
    allow(0o644);
    assert!(csv.contains("\nlost,lost,\"no ending was logged, and process "), "{csv}");
    assert!(fs::read(Store::path(&results)).unwrap() == bytes, "nothing is written");
    assert!(!paths.verdicts().exists());
}

/// A harness that lives says how its runs ended, however many look on.
#[test]
fn onlookers_leave_the_runs_of_a_living_harness_alone() {
    let project = Project::new();
    // Each ends without a word of its own.
    project.sweep("axes: { train.learning_rate: [13, 14] }\nseeds: 6\n");
    let mut harness = begin(&project, &scripted(), &["--jobs", "2"]);
    until("there is a store", || says(&project, "SELECT count(*) FROM sweeps", "1"));
    while harness.try_wait().unwrap().is_none() {
        for row in sql(&project, "SELECT status, status_detail FROM v_runs") {
            assert!(!row.starts_with("lost"), "{row}");
        }
    }
    let ended = "SELECT label, status, count(*) FROM v_runs GROUP BY 1, 2 ORDER BY 1";
    assert_eq!(sql(&project, ended), ["learning_rate=13,failed,6", "learning_rate=14,killed,6"]);
    let attempts = "SELECT status, count(*) FROM v_attempts GROUP BY 1 ORDER BY 1";
    assert_eq!(sql(&project, attempts), ["failed,6", "killed,6"]);
}

/// Every table, without the numbers that only join them.
fn dump(results: &Path) -> BTreeMap<String, Vec<String>> {
    let store = Store::open_read_only(results).unwrap();
    let ask = |query: &str| -> Vec<String> {
        let mut statement = store.connection().prepare(query).unwrap();
        let count = statement.column_count();
        let rows = statement.query_map([], |row| {
            let cells = (0..count).map(|i| Ok(format!("{:?}", row.get::<_, SqlValue>(i)?)));
            Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join(" "))
        });
        let mut rows: Vec<String> = rows.unwrap().map(Result::unwrap).collect();
        rows.sort();
        rows
    };
    let text =
        |cell: String| cell.trim_start_matches("Text(\"").trim_end_matches("\")").to_string();
    let tables = ask("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name");
    let of_table = |table: &String| {
        let columns = ask(&format!("SELECT name FROM pragma_table_info('{table}')"));
        let of_column = |column: String| match (table.as_str(), column.as_str()) {
            ("metric_keys" | "runs" | "sweeps", "id") => "0".to_string(),
            (_, "run") => "(SELECT run_id FROM runs WHERE id = t.run)".into(),
            (_, "sweep_id") => "(SELECT name FROM sweeps WHERE id = t.sweep_id)".into(),
            ("metrics" | "metric_summaries", "key") => {
                "(SELECT key FROM metric_keys WHERE id = t.key)".into()
            }
            _ => format!("\"{column}\""),
        };
        let columns: Vec<String> = columns.into_iter().map(text).map(of_column).collect();
        (table.clone(), ask(&format!("SELECT {} FROM {table} t", columns.join(", "))))
    };
    tables.into_iter().map(text).map(|table| of_table(&table)).collect()
}

/// Removes the database and makes it again of the folders; what that said.
#[track_caller]
fn made_anew(project: &Project) -> String {
    for file in ["fathom.db", "fathom.db-wal", "fathom.db-shm"] {
        let _ = fs::remove_file(project.results().join(file));
    }
    fathom(project, &["db", "rebuild"])
}

/// Sweeps that were edited and cut short, endings of all kinds, attempts that failed before, what people said of runs, a ladder:
/// the folders have all of it.
#[test]
fn a_database_made_of_folders_alone_has_the_same_rows() {
    let project = Project::new();
    let run = |text: &str, more: &[&str], code: i32| {
        project.sweep(text);
        let arguments = [&["sweep", "run", "s.yaml", "--no-report"], more].concat();
        let mut command = project.fathom(&scripted(), &arguments);
        exits(&command.env("SCRIPT_EDGE", "1000").output().unwrap(), code);
    };
    let grid = "name: endings
axes: { kind: { well: {}, exits: { train.learning_rate: 13 }, dies: { train.learning_rate: 14 },
                diverges: { train.learning_rate: 15 }, long: { train.sequence_length: 2048, train.total_tokens: 8192 } } }
seeds: 2
";
    run(grid, &[], 3);
    // Those that failed are tried again, and one kind is there no more.
    run(&grid.replace("diverges: { train.learning_rate: 15 }, ", ""), &[], 3);
    run(
        "name: short\n# Is it enough?\naxes: { train.learning_rate: [0.1, 0.2, 0.3] }\nbudget: { runs: 1 }\n",
        &[],
        0,
    );
    run(
        "name: ladder\naxes: { train.learning_rate: [0.5, 0.4, 0.6, 0.7] }\nsearch: { halving: { metric: loss, rungs: [320], keep: 1/2 } }\n",
        &[],
        0,
    );
    // One is killed with its harness, and so is the next attempt at it, and one is stopped.
    project.sweep("name: killed\nset: { train.learning_rate: 0.11 }\n");
    for step in [2, 6] {
        let harness = begin(&project, &scripted(), &[]);
        let steps = format!("SELECT status FROM v_runs WHERE sweep = 'killed' AND step >= {step}");
        until("it is at work", || says(&project, &steps, "running"));
        crash(&project, harness);
    }
    project.sweep("name: stopped\nset: { train.learning_rate: 0.12 }\n");
    let harness = begin(&project, &scripted(), &[]);
    let begun = "SELECT status FROM v_runs WHERE sweep = 'stopped' AND step > 0";
    until("it is at work", || says(&project, begun, "running"));
    fathom(&project, &["control", "save-stop", "--sweep", "stopped", "--wait"]);
    exits(&harness.wait_with_output().unwrap(), 3);
    let well =
        sql(&project, "SELECT run_id FROM v_runs WHERE label = 'kind=well' LIMIT 1").remove(0);
    fathom(&project, &["runs", "tag", &well, "+keep", "+best"]);
    fathom(&project, &["runs", "note", &well, "the one to beat"]);

    let statuses = sql(&project, "SELECT DISTINCT status FROM runs ORDER BY 1");
    let all =
        ["diverged", "failed", "finished", "killed", "lost", "out_of_memory", "planned", "stopped"];
    assert_eq!(statuses, all);
    let live = dump(&project.results());
    assert!(live["verdicts"].len() >= 8 && live["sweeps"].len() == 5, "{:?}", live["verdicts"]);
    let said = made_anew(&project);
    assert!(!said.contains("note: ") && !said.contains("warning: "), "{said}");
    let anew = dump(&project.results());
    for (table, rows) in &live {
        let missing: Vec<_> = rows.iter().filter(|row| !anew[table].contains(row)).collect();
        assert_eq!(anew[table].len(), rows.len(), "{table}: {missing:#?}");
        assert!(missing.is_empty(), "{table}: {missing:#?}\n{:#?}", anew[table]);
    }
    assert!(fathom(&project, &["db", "check"]).ends_with("nothing is wrong\n"));
    // A sweep that was made anew goes on where it was.
    let attempts: usize = live["attempts"].len();
    run(
        "name: short\naxes: { train.learning_rate: [0.1, 0.2, 0.3] }\nbudget: { runs: 1 }\n",
        &[],
        0,
    );
    assert_eq!(dump(&project.results())["attempts"].len(), attempts);
}

/// What an earlier fathom left beside its database is read as it was, and what is missing is said.
#[test]
fn older_folders_are_read_and_what_they_lack_is_said() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [0.1, 13] }\n");
    exits(&project.run(&scripted()), 3);
    let live = dump(&project.results());
    fs::remove_dir_all(project.results().join("sweeps")).unwrap();
    for paths in folders(&project) {
        let _ = fs::remove_file(paths.verdicts());
    }
    // While the database is there, it knows; and it writes down what only it knows.
    fathom(&project, &["db", "rebuild"]);
    assert_eq!(dump(&project.results()), live);
    assert!(project.results().join("sweeps/s.json").exists());
    fs::remove_dir_all(project.results().join("sweeps")).unwrap();
    for paths in folders(&project) {
        let _ = fs::remove_file(paths.verdicts());
    }
    let said = made_anew(&project);
    assert!(said.contains("results/fathom.db: 2 runs, "), "{said}");
    assert!(
        said.contains("note: results/sweeps is not there, and the store has no sweep"),
        "{said}"
    );
    assert!(said.contains("help: `fathom sweep run FILE` records a sweep again"), "{said}");
    assert_eq!(
        sql(&project, "SELECT status FROM runs ORDER BY status"),
        ["finished", "lost"],
        "how it failed is known no more"
    );
}

/// A file beside the log that can't be read takes nothing else away, and is told of while the database has what it had.
#[test]
fn a_damaged_verdict_or_sweep_costs_no_run() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [0.1, 14] }\n");
    exits(&project.run(&scripted()), 3);
    let check = || {
        let output = project.fathom(&scripted(), &["db", "check"]).output().unwrap();
        text(&output.stdout) + &text(&output.stderr)
    };
    assert!(check().ends_with("nothing is wrong\n"), "{}", check());
    let record = project.results().join("sweeps/s.json");
    fs::write(&record, "{\"name\"").unwrap();
    let said = check();
    assert!(said.contains("problem: sweeps/s.json: "), "{said}");
    assert!(said.contains("help: remove it: `fathom db rebuild` writes it again"), "{said}");
    fs::remove_file(&record).unwrap();
    let said = check();
    assert!(said.contains("note: 1 sweeps stand in the database alone, s first"), "{said}");
    fathom(&project, &["db", "rebuild"]);
    assert!(check().ends_with("nothing is wrong\n"), "{}", check());

    let killed = folders(&project).into_iter().find(|paths| paths.verdicts().exists()).unwrap();
    fs::write(killed.verdicts(), "[{").unwrap();
    let steps = sql(&project, "SELECT run, count(*) FROM metrics GROUP BY run ORDER BY 2");
    for file in ["fathom.db", "fathom.db-wal", "fathom.db-shm"] {
        let _ = fs::remove_file(project.results().join(file));
    }
    let output = project.fathom(&scripted(), &["db", "rebuild"]).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(
        said.contains(" is made without what can't be read of it: ") && said.contains(": 2 runs, "),
        "{said}"
    );
    let anew = sql(&project, "SELECT run, count(*) FROM metrics GROUP BY run ORDER BY 2");
    assert_eq!(anew.len(), steps.len());
}

/// Several harnesses on one ladder decide one after another, each with all that had come by then.
#[test]
fn harnesses_on_one_ladder_decide_as_one() {
    const LADDER: &str = "axes: { train.learning_rate: [0.5, 0.1, 0.4, 0.2, 0.9, 0.8, 0.3] }
search: { halving: { metric: loss, rungs: [320, 640], keep: 1/3 } }
";
    for round in 0..12 {
        let project = Project::new();
        project.sweep(LADDER);
        let start = |jobs: &str| {
            let arguments = ["sweep", "run", "s.yaml", "--no-report", "--jobs", jobs];
            project.fathom(&scripted(), &arguments).env("SCRIPT_STEP_MS", "1").spawn().unwrap()
        };
        for harness in [start("1"), start("2")] {
            exits(&harness.wait_with_output().unwrap(), 0);
        }
        let text = fs::read(project.results().join("sweeps/s.promotions")).unwrap();
        let made: Vec<fathom::sweep::drive::Promotion> = serde_json::from_slice(&text).unwrap();
        let mut sent: BTreeSet<(String, u64)> = BTreeSet::new();
        for rung in [320, 640] {
            let at_rung: Vec<_> = made.iter().filter(|one| one.from_tokens == rung).collect();
            assert!(at_rung.is_sorted_by_key(|one| one.of), "round {round}: {made:?}");
            let beyond_the_share =
                at_rung.iter().filter(|one| one.place as f64 > one.of as f64 / 3.0 + 1e-9).count();
            assert!(beyond_the_share <= 1, "round {round}: {made:?}");
            for one in at_rung {
                assert!(sent.insert((one.run_id.0.clone(), rung)), "round {round}: {made:?}");
            }
        }
        // Who has gone past a rung was sent, and who was sent has gone; no step was made twice.
        let mut past = BTreeSet::new();
        for paths in folders(&project) {
            let run = paths.folder.file_name().unwrap().to_string_lossy().into_owned();
            let (mut steps, mut last) = (0, 0);
            for event in read_events(&paths.events(), 0).unwrap().0 {
                if let EventKind::Step { step, tokens, .. } = event.kind {
                    steps += 1;
                    last = tokens;
                    assert_eq!(step, steps, "round {round}, run {run}");
                }
            }
            past.extend(
                [320, 640].into_iter().filter(|rung| last > *rung).map(|rung| (run.clone(), rung)),
            );
        }
        assert_eq!(past, sent, "round {round}");
        let best =
            sql(&project, "SELECT label FROM v_runs WHERE status = 'finished' ORDER BY last_loss");
        assert_eq!(best[0], "learning_rate=0.1", "round {round}");
    }
}
