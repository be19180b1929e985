"""The part of the schema by which adapters are found: full text, indices, and views that people read.

It belongs to the migration ``m003_finding`` of :mod:`.schema`, and like it is never edited once released.
Everything here follows from the other tables, and triggers keep it so, whoever writes them: ``search`` has a row for
each version, and ``metrics`` repeats the domain and task of its version, so that the best of a cell is one step in an
index. The registry is opened with ``trusted_schema = OFF``: triggers and views may use only what SQLite calls
innocuous, to which neither FTS5 nor the functions on JSON belong in older versions (found with 3.40).
"""

from __future__ import annotations

FULL_TEXT = """
CREATE VIEW search_text AS
SELECT v.id AS version_id, a.name, a.domain, a.task, v.base_id AS base, v.method, v.strategy,
    (SELECT group_concat(t.tag, ' ') FROM tags t WHERE t.version_id = v.id) AS tags,
    (SELECT group_concat(l.name, ' ') FROM aliases l WHERE l.version_id = v.id) AS aliases,
    v.labels
FROM versions v JOIN adapters a ON a.id = v.adapter_id;

-- unicode61 takes every sign that is neither letter nor digit for a gap, so that `finance-tone` is two words, and
-- `remove_diacritics 2` finds "société" by "societe". The prefix indices are for words of which only the start is
-- typed.
CREATE VIRTUAL TABLE search USING fts5 (
    name, domain, task, base, method, strategy, tags, aliases, labels,
    tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);
INSERT INTO search (rowid, name, domain, task, base, method, strategy, tags, aliases, labels)
SELECT version_id, name, domain, task, base, method, strategy, tags, aliases, labels FROM search_text;

-- SQLite lets no trigger write to a virtual table here, so the triggers note which versions changed, and whoever writes
-- brings `search` up to date before the commit (lorary.hub.finding.fulltext).
CREATE TABLE search_pending (version_id INTEGER NOT NULL);
CREATE TRIGGER search_new_version AFTER INSERT ON versions BEGIN
    INSERT INTO search_pending VALUES (new.id);
END;
CREATE TRIGGER search_gone_version AFTER DELETE ON versions BEGIN
    INSERT INTO search_pending VALUES (old.id);
END;
CREATE TRIGGER search_changed_version AFTER UPDATE OF base_id, method, strategy, labels ON versions BEGIN
    INSERT INTO search_pending VALUES (new.id);
END;
CREATE TRIGGER search_changed_adapter AFTER UPDATE OF name, domain, task ON adapters BEGIN
    INSERT INTO search_pending SELECT id FROM versions WHERE adapter_id = new.id;
END;
CREATE TRIGGER search_new_tag AFTER INSERT ON tags BEGIN
    INSERT INTO search_pending VALUES (new.version_id);
END;
CREATE TRIGGER search_gone_tag AFTER DELETE ON tags BEGIN
    INSERT INTO search_pending VALUES (old.version_id);
END;
CREATE TRIGGER search_new_alias AFTER INSERT ON aliases BEGIN
    INSERT INTO search_pending VALUES (new.version_id);
END;
CREATE TRIGGER search_gone_alias AFTER DELETE ON aliases BEGIN
    INSERT INTO search_pending VALUES (old.version_id);
END;
CREATE TRIGGER search_moved_alias AFTER UPDATE ON aliases BEGIN
    INSERT INTO search_pending VALUES (old.version_id), (new.version_id);
END;
"""

INDICES = """
ALTER TABLE metrics ADD COLUMN domain TEXT;
ALTER TABLE metrics ADD COLUMN task TEXT;
UPDATE metrics SET (domain, task) = (
    SELECT a.domain, a.task FROM versions v JOIN adapters a ON a.id = v.adapter_id WHERE v.id = version_id
);
CREATE TRIGGER metrics_new AFTER INSERT ON metrics BEGIN
    UPDATE metrics SET (domain, task) = (
        SELECT a.domain, a.task FROM versions v JOIN adapters a ON a.id = v.adapter_id WHERE v.id = new.version_id
    ) WHERE rowid = new.rowid;
END;
CREATE TRIGGER metrics_changed_adapter AFTER UPDATE OF domain, task ON adapters BEGIN
    UPDATE metrics SET domain = new.domain, task = new.task
    WHERE version_id IN (SELECT id FROM versions WHERE adapter_id = new.id);
END;
CREATE INDEX metrics_value ON metrics (name, value, version_id, domain, task) WHERE split = 'test';
CREATE INDEX metrics_cell ON metrics (domain, task, name, value, version_id) WHERE split = 'test';
CREATE INDEX metrics_version ON metrics (version_id, name, value) WHERE split = 'test';

-- One for each way of filtering and sorting, so that neither reads the rows themselves, which carry manifests.
DROP INDEX versions_base_fingerprint;
CREATE INDEX versions_base_fingerprint ON versions (base_fingerprint, base_id);
CREATE INDEX versions_method ON versions (method);
CREATE INDEX versions_strategy ON versions (strategy);
CREATE INDEX versions_created ON versions (created_at);
CREATE INDEX versions_rank ON versions (rank);
CREATE INDEX versions_parameters ON versions (parameters);
CREATE INDEX versions_size ON versions (size_bytes);
DROP INDEX tags_tag;
CREATE INDEX tags_tag ON tags (tag, version_id);
CREATE INDEX aliases_name ON aliases (name, version_id);
"""

VIEWS = """
CREATE VIEW latest AS
SELECT a.name || '@' || v.number AS reference, a.name, v.number AS version, a.domain, a.task, v.base_id AS base,
    v.base_fingerprint, v.method, v.quantization, v.strategy, v.rank, v.parameters, v.size_bytes, v.created_at,
    (SELECT group_concat(name, ', ') FROM (SELECT name FROM aliases WHERE version_id = v.id ORDER BY name)) AS aliases,
    (SELECT group_concat(tag, ', ') FROM (SELECT tag FROM tags WHERE version_id = v.id ORDER BY tag)) AS tags,
    (SELECT group_concat(printf('%s %.4g', name, value), ', ') FROM
        (SELECT name, value FROM metrics WHERE version_id = v.id AND split = 'test' ORDER BY name)) AS metrics
FROM adapters a
JOIN versions v ON v.adapter_id = a.id AND v.number = (SELECT max(number) FROM versions WHERE adapter_id = a.id);

CREATE VIEW leaderboard AS
SELECT m.domain, m.task, m.name AS metric,
    rank() OVER (
        PARTITION BY m.domain, m.task, m.name
        ORDER BY CASE
            WHEN m.name NOT LIKE 'f1%' AND (
                lower(m.name) IN ('loss', 'perplexity', 'wer', 'cer', 'mse', 'mae', 'rmse', 'error')
                OR m.name LIKE '%#_loss' ESCAPE '#' OR m.name LIKE '%#_perplexity' ESCAPE '#'
                OR m.name LIKE '%#_wer' ESCAPE '#' OR m.name LIKE '%#_cer' ESCAPE '#'
                OR m.name LIKE '%#_mse' ESCAPE '#' OR m.name LIKE '%#_mae' ESCAPE '#'
                OR m.name LIKE '%#_rmse' ESCAPE '#' OR m.name LIKE '%#_error' ESCAPE '#'
            ) THEN m.value ELSE -m.value END
    ) AS place,
    m.value, a.name || '@' || v.number AS reference, v.base_id AS base, v.base_fingerprint, v.method, v.strategy,
    v.created_at
FROM metrics m JOIN versions v ON v.id = m.version_id JOIN adapters a ON a.id = v.adapter_id
WHERE m.split = 'test';

CREATE VIEW lineage AS
WITH RECURSIVE line (version_id, ancestor_id, ancestor, generation) AS (
    SELECT version_id, parent_id, parent, 1 FROM parents
    UNION
    SELECT line.version_id, p.parent_id, p.parent, line.generation + 1
    FROM line JOIN parents p ON p.version_id = line.ancestor_id
    WHERE line.generation < 100
)
SELECT a.name || '@' || v.number AS reference, line.ancestor, line.generation, v.strategy, a.domain, a.task,
    v.created_at, line.ancestor_id IS NULL AS ancestor_removed
FROM line JOIN versions v ON v.id = line.version_id JOIN adapters a ON a.id = v.adapter_id;
"""
