//! Logins that were refused and must not have been: of users that the generator made, and of those whose registration
//! was acknowledged. A client knows of the second by their answer alone, so it cannot have come too early.

use std::collections::HashSet;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::{
    clients::record::{Attempt, Told},
    database::generated_password,
    operation::{Login, Refusal, Trade},
};

/// How many users the generator made.
pub(super) async fn generated(client: &Client) -> Result<i64> {
    Ok(client.query_one("SELECT users FROM ids", &[]).await.context("asking for the generator's users")?.get(0))
}

/// Trades that were refused for a login that holds; `users` are the generator's.
pub(super) fn locked_out(users: i64, attempts: &[Attempt]) -> Vec<String> {
    let registered: HashSet<(i64, &str)> = attempts
        .iter()
        .filter_map(|attempt| match (&attempt.trade, attempt.told) {
            (Trade::Register(new), Told::Done(receipt)) => Some((receipt.row, new.password.as_str())),
            _ => None,
        })
        .collect();
    let holds = |login: &Login| {
        let made = (1..=users).contains(&login.user) && login.password == generated_password(login.user);
        made || registered.contains(&(login.user, login.password.as_str()))
    };
    let refused = attempts.iter().filter(|attempt| attempt.told == Told::Refused(Refusal::Login));
    let wrongly = refused.filter(|attempt| login(&attempt.trade).is_some_and(holds));
    wrongly.map(|attempt| super::rows::content(&attempt.trade)).collect()
}

fn login(trade: &Trade) -> Option<&Login> {
    match trade {
        Trade::Register(_) => None,
        Trade::Sell(sale) => Some(&sale.login),
        Trade::Bid(bid) => Some(&bid.login),
        Trade::Buy(purchase) => Some(&purchase.login),
        Trade::Comment(comment) => Some(&comment.login),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Purchase, Receipt, Registration};

    #[test]
    fn a_login_that_was_acknowledged_or_generated_is_never_refused_and_another_one_is() {
        let new = Registration { nickname: "n".into(), password: "p".into(), region: 1 };
        let registered = Attempt { trade: Trade::Register(new), told: Told::Done(Receipt { row: 7 }) };
        let check = |user: i64, password: &str, refusal, expected: usize| {
            let login = Login { user, password: password.into() };
            let trade = Trade::Buy(Purchase { login, item: 1, quantity: 1 });
            let attempts = [registered.clone(), Attempt { trade, told: Told::Refused(refusal) }];
            assert_eq!(locked_out(3, &attempts).len(), expected, "{attempts:?}");
        };
        check(7, "p", Refusal::Login, 1);
        check(7, "q", Refusal::Login, 0);
        check(6, "p", Refusal::Login, 0);
        check(3, &generated_password(3), Refusal::Login, 1);
        check(4, &generated_password(4), Refusal::Login, 0);
        check(7, "p", Refusal::Over, 0);
    }
}
