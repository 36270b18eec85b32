-- After the data, which is faster than row by row. Then the sequences go on above the generated numbers.
CREATE INDEX items_of_category ON items (category, end_date);
CREATE INDEX items_of_seller ON items (seller);
CREATE INDEX bids_of_item ON bids (item_id, bid DESC);
CREATE INDEX comments_about_user ON comments (to_user_id);
CREATE INDEX purchases_of_item ON buy_now (item_id);

INSERT INTO ids
    SELECT 1, (SELECT coalesce(max(id), 0) FROM users), (SELECT coalesce(max(id), 0) FROM items),
        (SELECT coalesce(max(id), 0) FROM bids), (SELECT coalesce(max(id), 0) FROM comments),
        (SELECT coalesce(max(id), 0) FROM buy_now);

SELECT setval(pg_get_serial_sequence(name, 'id'), top + 1, false)
    FROM ids, LATERAL (VALUES ('users', users), ('items', items), ('bids', bids), ('comments', comments),
        ('buy_now', buy_now)) AS tops (name, top);

ANALYZE;
