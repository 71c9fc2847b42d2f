# What the vendors' images hold, from Debian's packages: for an engine that cannot fetch images. Each target takes the same command and variables as the image it stands for.
FROM python:3.12-slim-bookworm AS debian
RUN apt-get update -qq

FROM debian AS postgres
RUN apt-get install -y -qq --no-install-recommends postgresql-15 gosu > /dev/null
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
COPY postgres-start.sh /usr/local/bin/
ENTRYPOINT ["bash", "/usr/local/bin/postgres-start.sh"]
CMD ["postgres"]
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT

FROM debian AS redis
RUN apt-get install -y -qq --no-install-recommends redis-server > /dev/null
WORKDIR /data
CMD ["redis-server"]

FROM debian AS nginx
RUN apt-get install -y -qq --no-install-recommends nginx-light openssl > /dev/null
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]

FROM debian AS monitoring
RUN apt-get install -y -qq --no-install-recommends prometheus prometheus-alertmanager prometheus-node-exporter prometheus-postgres-exporter prometheus-redis-exporter prometheus-nginx-exporter > /dev/null && \
    ln -s /usr/bin/prometheus-alertmanager /usr/local/bin/alertmanager && install -d -o nobody /prometheus /alertmanager
USER nobody

FROM monitoring AS prometheus
ENTRYPOINT ["prometheus"]
FROM monitoring AS alertmanager
ENTRYPOINT ["alertmanager"]
FROM monitoring AS node-exporter
ENTRYPOINT ["prometheus-node-exporter"]
FROM monitoring AS postgres-exporter
ENTRYPOINT ["prometheus-postgres-exporter"]
FROM monitoring AS redis-exporter
ENTRYPOINT ["prometheus-redis-exporter"]
FROM monitoring AS nginx-exporter
ENTRYPOINT ["prometheus-nginx-exporter"]

FROM debian AS pgbouncer
RUN apt-get install -y -qq --no-install-recommends pgbouncer > /dev/null
USER nobody
ENTRYPOINT ["pgbouncer"]
