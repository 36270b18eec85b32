//! Each request is carried out once, whatever ends in the middle; and the check finds what is missing and what is there
//! twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::stage::{self, Stage};
use auction::check::{Findings, check};
use auction::clients::record::{Attempt, Told};
use auction::mid_tier::MidTier;
use auction::mid_tier::fate::{Fate, Note, Unknown, fate};
use auction::mid_tier::ledger::Answer;
use auction::operation::{Bid, Browse, Login, Operation, Page, Purchase, Receipt, Refusal, Registration, Trade};
use auction::request_id::{Names, RequestId};
use deadpool_postgres::{Manager, Pool};
use tokio_postgres::NoTls;

const PATIENCE: Duration = Duration::from_millis(200);
/// A busy machine included.
const BOUND: Duration = Duration::from_secs(60);

fn login(user: i64) -> Login {
    Login { user, password: format!("password{user}") }
}

fn bid(amount: i64) -> Trade {
    Trade::Bid(Bid { login: login(1), item: 1, amount, quantity: 1 })
}

fn registration(nickname: &str) -> Trade {
    Trade::Register(Registration { nickname: nickname.into(), password: "p".into(), region: 1 })
}

async fn trade(mid_tier: &Arc<MidTier>, id: RequestId, trade: &Trade) -> Answer {
    mid_tier.answer(id, Operation::Trade(trade.clone())).await.expect("the database is there")
}

fn receipt(answer: &Answer) -> Receipt {
    match serde_json::from_slice(&answer.body) {
        Ok(Page::Done { receipt, .. }) => receipt,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_that_comes_again_is_not_carried_out_again_and_gets_the_same_bytes() {
    let stage = Stage::set().await;
    let (mid_tier, names) = (stage.mid_tier(), Names::new().unwrap());
    let id = names.next();
    let at_once = (0..8).map(|_| {
        let mid_tier = Arc::clone(&mid_tier);
        tokio::spawn(async move { trade(&mid_tier, id, &bid(1_000_000)).await })
    });
    let mut answers = Vec::new();
    for answer in at_once.collect::<Vec<_>>() {
        answers.push(answer.await.unwrap());
    }
    assert_eq!(answers[0].status, 200);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(stage.count("SELECT count(*) FROM bids WHERE bid = 1000000").await, 1);
    let again = trade(&mid_tier, names.next(), &bid(1_000_000)).await;
    assert_eq!((again.status, again.body), (409, r#"{"refused":"too-low"}"#.into()), "another request is another bid");

    let id = names.next();
    let look = || mid_tier.answer(id, Operation::Browse(Browse::Item(1)));
    let before = look().await.unwrap();
    trade(&mid_tier, names.next(), &bid(2_000_000)).await;
    assert_eq!(look().await.unwrap(), before, "what was read is told again as it was");
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing() {
    let stage = Stage::set().await;
    let (mid_tier, id) = (stage.mid_tier(), Names::new().unwrap().next());
    let gone = tokio::time::timeout(Duration::ZERO, mid_tier.answer(id, Operation::Trade(bid(1_000_000)))).await;
    assert!(gone.is_err(), "it cannot be that fast");
    let began = Instant::now();
    while stage.count("SELECT count(*) FROM bids WHERE bid = 1000000").await == 0 {
        assert!(began.elapsed() < BOUND, "it was not carried out");
    }
    assert_eq!(trade(&mid_tier, id, &bid(1_000_000)).await.status, 200);
    assert_eq!(stage.count("SELECT count(*) FROM bids WHERE bid = 1000000").await, 1);
}

/// What became of a transaction, as a mid tier asks.
async fn fate_of(stage: &Stage, note: Note) -> Result<Fate, Unknown> {
    let pool = Pool::builder(Manager::new(stage.address().parse().unwrap(), NoTls)).build().unwrap();
    fate(&pool.get().await.unwrap(), note.transaction, PATIENCE).await
}

/// Writes a user as a mid tier would, up to the commit.
async fn written(client: &mut tokio_postgres::Client) -> (tokio_postgres::Transaction<'_>, Note) {
    let transaction = client.transaction().await.unwrap();
    let text = "INSERT INTO users (firstname, lastname, nickname, password, email, region) \
                VALUES ('n', 'n', 'n', 'p', 'e', 1) RETURNING id, pg_current_xact_id()::text::bigint";
    let row = transaction.query_one(text, &[]).await.unwrap();
    (transaction, Note { receipt: Receipt { row: row.get(0) }, transaction: row.get(1) })
}

#[tokio::test]
async fn a_mid_tier_that_takes_over_answers_what_was_committed_and_does_what_was_not() {
    let stage = Stage::set().await;
    let names = Names::new().unwrap();
    // The one dies between its commit and its answer.
    let mut dead = stage.client().await;
    let (transaction, note) = written(&mut dead).await;
    transaction.commit().await.unwrap();
    let (id, spare) = (names.next(), stage.mid_tier());
    spare.adopt(id, note).unwrap();
    assert_eq!(receipt(&trade(&spare, id, &registration("n")).await), note.receipt);
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE nickname = 'n'").await, 1);
    stage.client().await.execute("DELETE FROM users WHERE nickname = 'n'", &[]).await.unwrap();

    // The other one dies before its commit, and the database notices.
    let mut dead = stage.client().await;
    let (transaction, note) = written(&mut dead).await;
    drop(transaction);
    let (id, spare) = (names.next(), stage.mid_tier());
    spare.adopt(id, note).unwrap();
    assert_ne!(receipt(&trade(&spare, id, &registration("n")).await), note.receipt, "a row of its own");
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE nickname = 'n'").await, 1);
}

#[tokio::test]
async fn a_transaction_that_hangs_on_a_dead_machine_s_connection_is_ended_and_then_decided() {
    let stage = Stage::set().await;
    let mut dead = stage.client().await;
    let (transaction, note) = written(&mut dead).await;
    // It stays open, as that of a machine which is gone without a word.
    assert_eq!(fate_of(&stage, note).await.unwrap(), Fate::Aborted);
    assert!(transaction.commit().await.is_err(), "the database has ended it");
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE nickname = 'n'").await, 0);
}

#[tokio::test]
async fn a_transaction_that_the_database_does_not_know_is_not_taken_for_undone() {
    let stage = Stage::set().await;
    let from_the_future = fate_of(&stage, Note { transaction: 1 << 40, receipt: Receipt { row: 1 } }).await;
    assert!(matches!(from_the_future, Err(Unknown::Forgotten(_))), "{from_the_future:?}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let stage = Stage::set().await;
    let (mid_tier, names) = (stage.mid_tier(), Names::new().unwrap());
    let buy = |login, item, quantity| Trade::Buy(Purchase { login, item, quantity });
    let stranger = Login { user: 1, password: "another".into() };
    let cases = [
        (buy(stranger, 1, 1), Refusal::Login),
        (buy(login(1), 1 << 40, 1), Refusal::Unknown),
        (buy(login(1), 1, 3), Refusal::TooMany),
        (buy(login(1), 1, -1), Refusal::Number),
        (bid(1), Refusal::TooLow),
        (registration("user1"), Refusal::NicknameTaken),
    ];
    for (asked, expected) in cases {
        let answer = trade(&mid_tier, names.next(), &asked).await;
        let page: Page = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((page, answer.status), (Page::Refused(expected), expected.status()), "{asked:?}");
    }
    assert!(check(&stage.client().await, &[]).await.unwrap().is_clean());
    // Item 1 is there twice; then its auction is over.
    assert_eq!(trade(&mid_tier, names.next(), &buy(login(1), 1, 2)).await.status, 200);
    let answer = trade(&mid_tier, names.next(), &buy(login(2), 1, 1)).await;
    assert_eq!(answer.body, r#"{"refused":"over"}"#);
}

/// A database with one trade of each kind in it, and the record of them.
async fn traded() -> (Stage, Vec<Attempt>) {
    let stage = Stage::set().await;
    let (mid_tier, names) = (stage.mid_tier(), Names::new().unwrap());
    let mut attempts = Vec::new();
    for asked in stage::one_of_each() {
        let told = Told::Done(receipt(&trade(&mid_tier, names.next(), &asked).await));
        attempts.push(Attempt { trade: asked, told });
    }
    (stage, attempts)
}

/// What is found after `corruption`.
async fn found(stage: &Stage, corruption: &str, attempts: &[Attempt]) -> Findings {
    let client = stage.client().await;
    // Undone afterwards, so that one database serves for all of them.
    client.batch_execute(&format!("BEGIN; {corruption}")).await.unwrap();
    let findings = check(&client, attempts).await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    findings
}

#[tokio::test]
async fn the_check_finds_what_is_missing_doubled_changed_and_unasked() {
    let (stage, attempts) = traded().await;
    let clean = found(&stage, "", &attempts).await;
    assert!(clean.is_clean(), "{clean:?}");
    assert_eq!(clean.acknowledged, 5);
    for (table, columns, top) in [
        ("users", "firstname, lastname, nickname || '', password, email, region", "users"),
        ("items", "name, description, initial_price, quantity, buy_now, end_date, seller, category", "items"),
        ("bids", "user_id, item_id, qty, bid, max_bid", "bids"),
        ("buy_now", "buyer_id, item_id, qty", "buy_now"),
        ("comments", "from_user_id, to_user_id, item_id, rating, comment", "comments"),
    ] {
        let ours = format!("id > (SELECT {top} FROM ids)");
        let missing = found(&stage, &format!("DELETE FROM {table} WHERE {ours}"), &attempts).await;
        assert_eq!(missing.missing.len(), 1, "{table}: {missing:?}");
        let into = columns.replace(" || ''", "");
        let twice = format!(
            "ALTER TABLE users DROP CONSTRAINT users_nickname_key; \
             INSERT INTO {table} ({into}) SELECT {columns} FROM {table} WHERE {ours}"
        );
        let doubled = found(&stage, &twice, &attempts).await;
        assert_eq!(doubled.doubled.len(), 1, "{table}: {doubled:?}");
        let moved = found(&stage, &format!("UPDATE {table} SET id = id + 1000000 WHERE {ours}"), &attempts).await;
        assert_eq!(moved.misnumbered.len(), 1, "{table}: {moved:?}");
        let unasked = found(&stage, "", &attempts[..4]).await;
        assert_eq!(unasked.unasked.len(), 1, "{unasked:?}");
    }
    let users = "UPDATE users SET password = 'another' WHERE id > (SELECT users FROM ids)";
    let changed = found(&stage, users, &attempts).await;
    assert_eq!((changed.missing.len(), changed.unasked.len()), (1, 1), "{changed:?}");
}

#[tokio::test]
async fn the_check_tells_refused_from_unclear_and_sees_books_that_do_not_balance() {
    let (stage, mut attempts) = traded().await;
    for (corruption, what) in [
        ("UPDATE items SET nb_of_bids = nb_of_bids + 1 WHERE id = 2", "item 2 counts"),
        ("UPDATE items SET max_bid = max_bid + 1 WHERE id = 2", "item 2 counts"),
        ("UPDATE items SET quantity = quantity + 1 WHERE id = 2", "item 2 has"),
        ("UPDATE users SET rating = rating + 1 WHERE id = 2", "user 2 is rated"),
        ("UPDATE bids SET bid = 1 WHERE id > (SELECT bids FROM ids)", "not above"),
    ] {
        let findings = found(&stage, corruption, &attempts).await;
        assert!(findings.unbalanced.iter().any(|wrong| wrong.contains(what)), "{corruption}: {findings:?}");
    }
    attempts[0].told = Told::Nothing;
    let unclear = found(&stage, "", &attempts).await;
    assert!(unclear.is_clean() && (unclear.unclear, unclear.unclear_done) == (1, 1), "{unclear:?}");
    attempts[0].told = Told::Refused(Refusal::TooLow);
    let refused = found(&stage, "", &attempts).await;
    assert_eq!(refused.refused_but_done.len(), 1, "{refused:?}");
    // All but the registration say who trades, and the generator made them.
    attempts.iter_mut().for_each(|attempt| attempt.told = Told::Refused(Refusal::Login));
    let locked_out = found(&stage, "", &attempts).await;
    assert_eq!(locked_out.locked_out.len(), 4, "{locked_out:?}");
}
