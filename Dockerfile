# syntax=docker/dockerfile:1.7
# One image for every process of encore: `docker run encore:0.1.0 serve`, `… stream`, `… apply`.
# PIP_INDEX_URL and PIP_EXTRA_INDEX_URL are pip's own; give the index of PyTorch's CPU wheels as the
# second one, or the image carries CUDA libraries that nothing here uses.

FROM python:3.11.13-bookworm AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/encore
# The dependencies are a layer of their own: a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && /opt/encore/bin/pip install -r requirements.txt -c constraints.txt
COPY . .
RUN /opt/encore/bin/pip install --no-deps .

FROM python:3.11.13-slim-bookworm
RUN groupadd --system --gid 10001 encore \
    && useradd --system --uid 10001 --gid encore --no-create-home --home-dir /srv/encore encore \
    && install -d -o encore -g encore /srv/encore /var/lib/encore
COPY --from=build /opt/encore /opt/encore
COPY --chown=encore:encore feature_repo /srv/encore/feature_repo
ENV PATH=/opt/encore/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ENCORE_DATA_DIR=/var/lib/encore \
    ENCORE_REPO=/srv/encore/feature_repo \
    ENCORE_HTTP_HOST=0.0.0.0
WORKDIR /srv/encore
USER encore
VOLUME /var/lib/encore
EXPOSE 8080 8090
# Of the ranking service; the other processes end when something is wrong, and are started again.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('ENCORE_HTTP_PORT', '8080') + '/v2/health/ready', timeout=2)"]
ENTRYPOINT ["encore"]
CMD ["serve"]
